"""Reads and writes Hugging Face checkpoints: one table of names for both directions; weights are streamed."""
