"""Adapters to the trainers of other libraries, which are imported only when an adapter is."""
