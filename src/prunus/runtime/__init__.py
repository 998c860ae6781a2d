"""Running sparse networks on the CPU faster than dense ones."""
