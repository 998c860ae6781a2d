"""Calls of a model on example inputs, comparison of outputs, and attention."""
