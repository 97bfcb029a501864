"""Prefix sharing: the common prefix of two or three sequences of a row is computed once.

A row has L slots, one for each token of its sequences, over which attention and the loss work. Where sequences have a
common prefix, as a pair's chosen and rejected have their prompt, its hidden states are the same in all. So they are
computed once: layers work on C <= L tokens, which are spread over the slots only for attention and the loss.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped


class SharedPrefixes(NamedTuple):
    """`first`, `second` and `third` are the inverse of `source`: no token has more than three slots."""

    first: Int[Array, "B C"]
    """The slot of each computed token; L where there is none."""
    second: Int[Array, "B C"]
    """Its second slot, in the other sequence; L where there is none."""
    source: Int[Array, "B L"]
    """The computed token of each slot; C in padding."""
    third: Int[Array, "B C"] | None = None
    """Its third slot, likewise; None where all examples are pairs."""


@jax.custom_vjp
def spread(x: Shaped[Array, "B C ..."], shared: SharedPrefixes) -> Shaped[Array, "B L ..."]:
    """Computed tokens in their slots; 0 in padding."""
    return _taken(x, shared.source)


@jax.custom_vjp
def collect(x: Shaped[Array, "B L ..."], shared: SharedPrefixes) -> Shaped[Array, "B C ..."]:
    """Computed tokens from the first of their slots; 0 where there is none."""
    return _taken(x, shared.first)


def _spread_backward(shared: SharedPrefixes, cotangent: Shaped[Array, "B L ..."]) -> tuple[Array, None]:
    total = _taken(cotangent, shared.first) + _taken(cotangent, shared.second)
    return total if shared.third is None else total + _taken(cotangent, shared.third), None


def _collect_backward(shared: SharedPrefixes, cotangent: Shaped[Array, "B C ..."]) -> tuple[Array, None]:
    slots = jnp.arange(shared.source.shape[1])
    is_first = _taken(shared.first, shared.source) == slots
    return _taken(cotangent, jnp.where(is_first, shared.source, shared.first.shape[1])), None


# Gradients are written out as gathers: those of JAX would be scatters, which are slow.
spread.defvjp(lambda x, shared: (spread(x, shared), shared), _spread_backward)
collect.defvjp(lambda x, shared: (collect(x, shared), shared), _collect_backward)


def _taken(x: Array, index: Int[Array, "B T"]) -> Array:
    """Entries of each row, and zeros where the index is beyond it."""
    # Channels on one axis fill a TPU's tiles, however few heads there are.
    flat = x.reshape(*x.shape[:2], -1)
    taken = jax.vmap(lambda row, at: row.at[at].get(mode="fill", fill_value=0))(flat, index)
    return taken.reshape(*index.shape, *x.shape[2:])
