"""Figures of the README and of ``docs/figures.md``, rendered from the result files."""
