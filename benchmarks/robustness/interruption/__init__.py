"""Interruption of runs of the command, and the inspection of what they leave."""
