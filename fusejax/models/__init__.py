"""One decoder for all model families, and its way from and to Hugging Face checkpoints."""
