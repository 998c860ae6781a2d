"""Process groups and the shards of a tensor that processes hold."""
