"""Recipes: the tasks, networks and settings that `prunus run` trains."""
