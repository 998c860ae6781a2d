"""Recipes that users write: a Python file or an installed module, run by the code of all recipes.

Such a module has the names that :mod:`prunus.recipes.custom.definition` lists.
"""
