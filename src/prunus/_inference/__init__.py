"""Calling a model on example inputs, and comparing the outputs of two models."""
