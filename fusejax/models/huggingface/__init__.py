"""Hugging Face checkpoints, read and written: one table of names, used in both directions; weights that stream."""
