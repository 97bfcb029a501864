"""From shards of examples to packed rows of tokens. `records` imports no JAX, as the data pipeline writes with it."""
