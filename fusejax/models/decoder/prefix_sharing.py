"""What two sequences of a row begin with, computed once.

A row has L slots, one for each token of its sequences, which attention and the loss go over. Where two sequences begin
alike, as a pair's chosen and rejected do with their prompt, their layers find the same for both until they part. Such
tokens are computed once, so layers go over C <= L tokens, which are spread over the slots just for attention.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped


class SharedPrefixes(NamedTuple):
    """`first` and `second` are the inverse of `source`: no token has a third slot."""

    first: Int[Array, "B C"]
    """The slot of each computed token; L where there is none."""
    second: Int[Array, "B C"]
    """The other slot that has the same; L where there is none."""
    source: Int[Array, "B L"]
    """The computed token of each slot; C in padding."""


@jax.custom_vjp
def spread(x: Shaped[Array, "B C ..."], shared: SharedPrefixes) -> Shaped[Array, "B L ..."]:
    """Computed tokens in their slots; 0 in padding."""
    return _taken(x, shared.source)


@jax.custom_vjp
def collect(x: Shaped[Array, "B L ..."], shared: SharedPrefixes) -> Shaped[Array, "B C ..."]:
    """Computed tokens from the first of their slots; 0 where there is none."""
    return _taken(x, shared.first)


def _collect_backward(shared: SharedPrefixes, cotangent: Shaped[Array, "B C ..."]) -> tuple[Array, None]:
    slots = jnp.arange(shared.source.shape[1])
    is_first = _taken(shared.first, shared.source) == slots
    return _taken(cotangent, jnp.where(is_first, shared.source, shared.first.shape[1])), None


# Written out, as JAX's own are scatters, which are slow; these are gathers too.
spread.defvjp(
    lambda x, shared: (spread(x, shared), shared),
    lambda shared, cotangent: (_taken(cotangent, shared.first) + _taken(cotangent, shared.second), None),
)
collect.defvjp(lambda x, shared: (collect(x, shared), shared), _collect_backward)


def _taken(x: Array, index: Int[Array, "B T"]) -> Array:
    """Entries of each row, and zeros where the index is beyond it."""
    # Channels on one axis fill a TPU's tiles, however few heads there are.
    flat = x.reshape(*x.shape[:2], -1)
    taken = jax.vmap(lambda row, at: row.at[at].get(mode="fill", fill_value=0))(flat, index)
    return taken.reshape(*index.shape, *x.shape[2:])
