"""Zoo of architectures: small random models of transformers and timm, and prunus's functions."""
