"""The decoder's building blocks. A leading `stack` axis of parameters is added here and sliced off by the scan.

Every parameter is drawn with standard deviation 1 / sqrt(fan-in); norms start as the identity and biases at zero.
Parameters are kept in `param_dtype` and cast to their input's dtype where they are used.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

Shape = tuple[int, ...]


def precision(dtype: DTypeLike) -> jax.lax.Precision:
    """Float32 means float32: accelerators otherwise round the factors of a product to fewer bits."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def rms_norm(x: Float[Array, "... D"], scale: Float[Array, "D"], *, eps: float, offset: float) -> Float[Array, "... D"]:
    """Root mean square normalisation over channels, in float32."""
    wide = x.astype(jnp.float32)
    wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * (scale.astype(jnp.float32) + offset)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """The parameters of `rms_norm`."""

    def __init__(self, size: int, *, eps: float, offset: float, stack: Shape = (), param_dtype: DTypeLike):
        self.eps, self.offset = eps, offset
        self.scale = nnx.Param(jnp.full((*stack, size), 1 - offset, param_dtype))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return rms_norm(x, self.scale[...], eps=self.eps, offset=self.offset)


class Linear(nnx.Module):
    """A linear map from axes `inputs` to axes `outputs`, each flattened to one axis of the weight [outputs, inputs].

    Checkpoints have the same layout. Heads and their width, flattened, fill a TPU's tiles whatever the width is.
    """

    def __init__(
        self,
        inputs: Shape,
        outputs: Shape,
        *,
        bias: bool = False,
        stack: Shape = (),
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.inputs, self.outputs, self.has_bias = inputs, outputs, bias
        fan_in, fan_out = math.prod(inputs), math.prod(outputs)
        draw = jax.random.normal(rngs.params(), (*stack, fan_out, fan_in), param_dtype)
        self.weight = nnx.Param(draw / math.sqrt(fan_in))
        if bias:
            self.bias = nnx.Param(jnp.zeros((*stack, fan_out), param_dtype))

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        leading = x.shape[: x.ndim - len(self.inputs)]
        weight = self.weight[...].astype(x.dtype)
        # Tokens on one axis: CPUs transpose `x` for the weight's gradient, slowly if it has more axes.
        flat = x.reshape(math.prod(leading), weight.shape[1])
        y = jnp.einsum("ti,oi->to", flat, weight, precision=precision(x.dtype))
        if self.has_bias:
            y += self.bias[...].astype(x.dtype)
        # -1: with tensor parallelism a device has only some of the heads.
        return y.reshape(*leading, -1, *self.outputs[1:])


class Embedder(nnx.Module):
    """Token ids to vectors, times `scale`."""

    def __init__(
        self,
        vocab_size: int,
        size: int,
        *,
        scale: float,
        param_dtype: DTypeLike,
        compute_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.scale, self.compute_dtype = scale, compute_dtype
        draw = jax.random.normal(rngs.params(), (vocab_size, size), param_dtype)
        self.embedding = nnx.Param(draw / math.sqrt(size))

    def __call__(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        vectors = jnp.take(self.embedding[...], tokens, axis=0).astype(self.compute_dtype)
        return vectors if self.scale == 1 else vectors * jnp.asarray(self.scale, self.compute_dtype)


class Head(nnx.Module):
    """The output projection of models that do not reuse the embedding, laid out as the embedding is: [V, D]."""

    def __init__(self, vocab_size: int, size: int, *, param_dtype: DTypeLike, rngs: nnx.Rngs):
        draw = jax.random.normal(rngs.params(), (vocab_size, size), param_dtype)
        self.embedding = nnx.Param(draw / math.sqrt(size))
