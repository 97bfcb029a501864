"""Stochastic rounding to bfloat16, for what a step changes by less than bfloat16 resolves.

bfloat16 has 8 significant bits: neighbouring numbers are 0.4 to 0.8 % apart. A step changes a weight by far less, and a
second moment by at most 0.1 %, so rounding to nearest gives back the old value, step after step. Stochastic rounding
goes up or down with probabilities that make the expected result the exact one, so that small changes add up.

The random bits of a value are a hash of the step, of which array of the state it is, and of where in the array: they
are the same on any number of devices and hosts, and in a run that was killed and resumed.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float32, Int, UInt16


def in_float32(tree: Any) -> Any:
    """The tree with its bfloat16 arrays in float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, tree)


def stored(new: Any, like: Any, step: Int[Array, ""]) -> Any:
    """Each array of `new` in the dtype of that in `like`; those that become bfloat16 are rounded stochastically.

    Args:
      new: arrays; float32 where `like` has bfloat16.
      like: arrays or shapes, in the same tree.
      step: seeds the rounding. Not to be used twice on the same tree.
    """
    arrays, structure = jax.tree.flatten(new)
    dtypes = [x.dtype for x in jax.tree.leaves(like)]
    if jnp.bfloat16 not in dtypes:
        return new
    key = jax.random.fold_in(jax.random.key(0), step)
    rounded = [
        stochastically_rounded(x, jax.random.bits(jax.random.fold_in(key, number), x.shape, jnp.uint16))
        if dtype == jnp.bfloat16
        else x
        for number, (x, dtype) in enumerate(zip(arrays, dtypes, strict=True))
    ]
    return jax.tree.unflatten(structure, rounded)


def stochastically_rounded(x: Float32[Array, "..."], bits: UInt16[Array, "..."]) -> BFloat16[Array, "..."]:
    """`x` as one of the two bfloat16 numbers around it, the nearer one more often: the mean over `bits` is `x`.

    A float32 is a bfloat16 with 16 more bits of the significand. Adding 16 random bits to these carries into the upper
    half with the probability that they stand for. What bfloat16 has exactly stays, zero too; so do infinities and NaN.

    Args:
      x: what to round.
      bits: uniform.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.full(4, 1 + 1 / 512)  # a quarter of the way from 1 to the next number, 1 + 1 / 128
      >>> stochastically_rounded(x, jnp.array([0, 1, 2, 3], jnp.uint16) << 14)
      Array([1, 1, 1, 1.00781], dtype=bfloat16)
    """
    words = jax.lax.bitcast_convert_type(x, jnp.uint32) + bits
    upper = jax.lax.bitcast_convert_type((words >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), upper, x.astype(jnp.bfloat16))
