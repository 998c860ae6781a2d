"""The tasks of the recipes: classification, sequence to sequence, language modelling."""
