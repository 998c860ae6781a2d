"""Contract: every method with every optimizer, precision and process layout, against formulas."""
