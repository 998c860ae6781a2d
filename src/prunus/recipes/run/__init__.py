"""Running a recipe: training, checkpoints, the directory of a run and what it delivers."""
