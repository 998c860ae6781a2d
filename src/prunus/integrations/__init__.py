"""Thin adapters to the trainers people use. Each imports its framework; prunus imports none."""
