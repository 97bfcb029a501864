"""A source model's distributions as distributions over the target's tokens. NumPy alone: no JAX, no model."""
