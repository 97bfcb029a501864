"""The whole fusion on one CPU machine: tiny models, real commands."""
