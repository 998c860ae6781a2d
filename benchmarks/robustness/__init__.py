"""Robustness: interruption, damaged files, and the contract of all combinations."""
