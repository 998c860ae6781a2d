"""Studies: recipes trained to their end, over several seeds."""
