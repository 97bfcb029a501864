"""The one decoder that all families are values of, its parts, and greedy generation with it."""
