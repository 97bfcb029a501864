"""What devices exchange, with gradients. For use inside a `jax.shard_map` that is manual over all mesh axes.

Gradients are written out here rather than left to the checker of replicated values (`check_vma=False`), so that it can
be read what each device sends.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array

from fusejax.distributed.sharding import mesh_axes


def gather_layer(params: Any, specs: Any, axis: str, dtype: DTypeLike) -> Any:
    """A layer's parameters, made whole along `axis`, as `specs` says how they are split; other axes stay split.

    The backward pass leaves each device with the gradient of its own part, summed over `axis`. What is exchanged is in
    `dtype`, the compute dtype, in both directions.
    """

    def gather(x: Array, spec: PartitionSpec) -> Array:
        split = [axis in mesh_axes(entry) for entry in spec]
        if any(split):
            return jax.lax.all_gather(x.astype(dtype), axis, axis=split.index(True), tiled=True)
        return sum_gradient(x, axis)

    return jax.tree.map(gather, params, specs)


def sum_unsplit(params: Any, specs: Any, axis: str) -> Any:
    """Parameters that `axis` does not split, as `specs` says, with `sum_gradient`; those that it does as they are."""

    def summed(x: Array, spec: PartitionSpec) -> Array:
        return x if any(axis in mesh_axes(entry) for entry in spec) else sum_gradient(x, axis)

    return jax.tree.map(summed, params, specs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def sum_gradient(x: Array, axis: str) -> Array:
    """`x`, which is the same on all devices along `axis` but used for something else on each.

    Every replicated parameter that meets activations which differ along `axis` must go through this on its way there:
    without it the values are right and each device is left with a part of the gradient. See `network.Network`.
    """
    return x


sum_gradient.defvjp(lambda x, axis: (x, None), lambda axis, _, cotangent: (jax.lax.psum(cotangent, axis),))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def sum_parts(x: Array, axis: str) -> Array:
    """The sum of what the devices along `axis` have, the same on all of them, as everything computed from it is."""
    return jax.lax.psum(x, axis)


sum_parts.defvjp(lambda x, axis: (jax.lax.psum(x, axis), None), lambda axis, _, cotangent: (cotangent,))


def as_stored(x: Array, dtype: DTypeLike) -> Array:
    """`x`, a part of an array that a loop goes through, such that it is rounded here, to `dtype`, not before the loop.

    A compiler that sees every turn of a loop round its part of an array to bfloat16 may round the whole array before
    the loop, and keep that copy. It does not look through a conversion to integers. That takes a copy of the part, so
    what needs no rounding is left alone.
    """
    if x.dtype == dtype:
        return x
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    return jax.lax.bitcast_convert_type(jax.lax.optimization_barrier(bits), x.dtype)
