"""The one decoder for all model families, its parts, and greedy generation."""
