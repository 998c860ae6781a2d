"""The machinery of the pruner: step hooks, removal, the k-th smallest score, the best state."""
