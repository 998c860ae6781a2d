"""Checks of arguments, files, chunks of tensors, timing and system information."""
