"""Process groups, shards of tensors, and wrappers around models."""
