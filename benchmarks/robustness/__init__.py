"""Robustness: interruption, damaged files, the contract of all combinations, and mutations."""
