"""From preference shards to packed rows of tokens. `records` imports without JAX: the data pipeline writes with it."""
