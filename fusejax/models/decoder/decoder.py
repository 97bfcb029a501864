"""One decoder for Llama, Qwen2, Gemma-2 and Mistral: what differs between them is in `DecoderConfig`.

Layers are scanned: the parameters of all blocks (see `DecoderConfig.pattern`) are stacked on a leading axis, so compile
time does not grow with depth. `blocks.0.mlp.gate.weight` holds that weight of the first layer of every block.

    model = Decoder(config, rngs=nnx.Rngs(0))
    hidden = model(tokens, positions, segment_ids)
    logits = model.logits(hidden)

Training runs the same layers over a mesh, with a backward pass of its own: see `fusejax.training.network`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from fusejax.distributed.collectives import sum_gradient, sum_parts
from fusejax.models.attention.dispatch import Kernel, Placement, attention
from fusejax.models.decoder.config import DecoderConfig
from fusejax.models.decoder.layers import Embedder, Head, Linear, RMSNorm, Shape, precision
from fusejax.models.decoder.prefix_sharing import SharedPrefixes, collect, spread
from fusejax.models.decoder.rotary import Rotation, rotate, rotation

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class Cache(NamedTuple):
    """Keys and values of the tokens so far, in slots that all rows fill together. Empty slots have segment 0."""

    keys: list[Float[Array, "blocks B S K H"]]
    """One array for each layer of the block."""
    values: list[Float[Array, "blocks B S K H"]]
    placement: Placement
    """Of the slots, [B, S]."""
    used: Int[Array, ""]
    """How many slots are filled."""


class LayerCache(NamedTuple):
    """One layer's view of the cache. The arrays stay whole, so that a loop writes them in place."""

    keys: Float[Array, "blocks B S K H"]
    values: Float[Array, "blocks B S K H"]
    placement: Placement
    block: Int[Array, ""]
    slot: Int[Array, ""]

    def write(self, key: Float[Array, "B L K H"], value: Float[Array, "B L K H"]) -> "LayerCache":
        start = (self.block, 0, self.slot, 0, 0)
        return self._replace(
            keys=jax.lax.dynamic_update_slice(self.keys, key[None], start),
            values=jax.lax.dynamic_update_slice(self.values, value[None], start),
        )

    def read(self) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"], Placement]:
        return self.keys[self.block], self.values[self.block], self.placement


class Attention(nnx.Module):
    def __init__(
        self,
        config: DecoderConfig,
        window: int | None,
        *,
        kernel: Kernel,
        stack: Shape,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.kernel = kernel
        self.scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.softcap, self.window = config.attention_softcap, window
        width = (config.hidden_size,)
        heads, kv_heads = (config.num_heads, config.head_dim), (config.num_kv_heads, config.head_dim)
        linear = functools.partial(Linear, stack=stack, param_dtype=param_dtype, rngs=rngs)
        self.query = linear(width, heads, bias=config.qkv_bias)
        self.key = linear(width, kv_heads, bias=config.qkv_bias)
        self.value = linear(width, kv_heads, bias=config.qkv_bias)
        self.output = linear(heads, width)

    def __call__(
        self,
        x: Float[Array, "B C D"],
        placement: Placement,
        rotary: Rotation,
        cache: LayerCache | None,
        shared: SharedPrefixes | None,
    ) -> tuple[Float[Array, "B C D"], LayerCache | None]:
        query, key, value = rotate(self.query(x), rotary), rotate(self.key(x), rotary), self.value(x)
        if shared is not None:
            query, key, value = (spread(each, shared) for each in (query, key, value))
        key_placement = placement
        if cache is not None:
            cache = cache.write(key, value)
            key, value, key_placement = cache.read()
        mixed = attention(
            query,
            key,
            value,
            query_placement=placement,
            key_placement=key_placement,
            scale=self.scale,
            window=self.window,
            softcap=self.softcap,
            precision=precision(x.dtype),
            kernel=self.kernel if cache is None else "xla",
        )
        if shared is not None:
            mixed = collect(mixed, shared)
        return self.output(mixed), cache


class MLP(nnx.Module):
    def __init__(self, config: DecoderConfig, *, stack: Shape, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.activation = config.activation
        width, inner = (config.hidden_size,), (config.intermediate_size,)
        linear = functools.partial(Linear, stack=stack, param_dtype=param_dtype, rngs=rngs)
        self.gate = linear(width, inner)
        self.up = linear(width, inner)
        self.down = linear(inner, width)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return self.down(_ACTIVATIONS[self.activation](self.gate(x)) * self.up(x))


class Layer(nnx.Module):
    """Attention and MLP, each added to the residual stream.

    Args:
      tensor_axis: the mesh axis over which heads and the MLP's inner channels are split; each device then has some.
        What is computed between `_to_parts` and `_from_parts` then differs between devices, and the gradient of a
        parameter that is used there but not split (a norm of each head) must be summed over the axis. The caller does
        so for all parameters of `PARTS`; any other parameter that is used on parts must go through `sum_gradient`.
      kernel: see `attention`.
    """

    PARTS = ("attention", "mlp")
    """The modules that work on parts."""

    def __init__(
        self,
        config: DecoderConfig,
        window: int | None,
        *,
        tensor_axis: str | None = None,
        kernel: Kernel = "xla",
        stack: Shape,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.tensor_axis = tensor_axis
        norm = functools.partial(
            RMSNorm,
            config.hidden_size,
            eps=config.norm_eps,
            offset=config.norm_offset,
            stack=stack,
            param_dtype=param_dtype,
        )
        self.post_norms = config.post_norms
        self.attention_norm = norm()
        self.attention = Attention(config, window, kernel=kernel, stack=stack, param_dtype=param_dtype, rngs=rngs)
        self.mlp_norm = norm()
        self.mlp = MLP(config, stack=stack, param_dtype=param_dtype, rngs=rngs)
        if config.post_norms:
            self.post_attention_norm = norm()
            self.post_mlp_norm = norm()

    def __call__(
        self,
        x: Float[Array, "B C D"],
        placement: Placement,
        rotary: Rotation,
        cache: LayerCache | None = None,
        shared: SharedPrefixes | None = None,
    ) -> tuple[Float[Array, "B C D"], LayerCache | None]:
        """With `shared`, `x` and `rotary` are per computed token, `placement` per slot; otherwise tokens are slots."""
        update, cache = self.attention(self._to_parts(self.attention_norm(x)), placement, rotary, cache, shared)
        update = self._from_parts(update)
        x = x + (self.post_attention_norm(update) if self.post_norms else update)
        update = self._from_parts(self.mlp(self._to_parts(self.mlp_norm(x))))
        return x + (self.post_mlp_norm(update) if self.post_norms else update), cache

    def _to_parts(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return x if self.tensor_axis is None else sum_gradient(x, self.tensor_axis)

    def _from_parts(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return x if self.tensor_axis is None else sum_parts(x, self.tensor_axis)


class Decoder(nnx.Module):
    """A causal language model up to its final norm, and its output projection.

    Args:
      config: shape and arithmetic.
      rngs: draws the initial parameters (stream `params`).
      param_dtype: of every parameter.
      compute_dtype: of activations and matrix products. Norms, rotary embedding and softmax are float32 always; with
        float32, products are full float32 on every backend.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike = jnp.float32,
        compute_dtype: DTypeLike = jnp.float32,
    ):
        self.config, self.compute_dtype = config, compute_dtype
        self.embedder = Embedder(
            config.vocab_size,
            config.hidden_size,
            scale=config.embedding_scale,
            param_dtype=param_dtype,
            compute_dtype=compute_dtype,
            rngs=rngs,
        )
        stack = (config.num_layers // len(config.pattern),)
        self.blocks = nnx.List(
            Layer(config, window, stack=stack, param_dtype=param_dtype, rngs=rngs) for window in config.pattern
        )
        self.final_norm = RMSNorm(
            config.hidden_size, eps=config.norm_eps, offset=config.norm_offset, param_dtype=param_dtype
        )
        if not config.tie_embeddings:
            self.lm_head = Head(config.vocab_size, config.hidden_size, param_dtype=param_dtype, rngs=rngs)

    def __call__(
        self, tokens: Int[Array, "B L"], positions: Int[Array, "B L"], segment_ids: Int[Array, "B L"]
    ) -> Float[Array, "B L D"]:
        """Hidden states after the final norm, in the compute dtype.

        Args:
          tokens: token ids.
          positions: from 0 at the start of each sequence of the row.
          segment_ids: number of the sequence within its row; 0 is padding, which no other token sees.
        """
        return self._run(tokens, Placement(positions, segment_ids), None)[0]

    def head(self) -> Float[Array, "V D"]:
        """The output projection, in the parameters' dtype, whether it is the embedding or not."""
        return self.embedder.embedding[...] if self.config.tie_embeddings else self.lm_head.embedding[...]

    def logits(self, hidden: Float[Array, "... D"]) -> Float32[Array, "... V"]:
        """Dense logits with the final soft cap: for decoding and tests; training never materialises them."""
        head = self.head().astype(hidden.dtype)
        logits = jnp.einsum(
            "...d,vd->...v", hidden, head, precision=precision(hidden.dtype), preferred_element_type=jnp.float32
        )
        cap = self.config.logits_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def empty_cache(self, rows: int, slots: int) -> Cache:
        """A cache for `slots` tokens in each of `rows` rows."""
        config = self.config
        pattern = len(config.pattern)
        shape = (config.num_layers // pattern, rows, slots, config.num_kv_heads, config.head_dim)
        none = jnp.zeros((rows, slots), jnp.int32)
        return Cache(
            keys=[jnp.zeros(shape, self.compute_dtype) for _ in range(pattern)],
            values=[jnp.zeros(shape, self.compute_dtype) for _ in range(pattern)],
            placement=Placement(none, none),
            used=jnp.zeros((), jnp.int32),
        )

    def decode(
        self,
        tokens: Int[Array, "B L"],
        positions: Int[Array, "B L"],
        segment_ids: Int[Array, "B L"],
        cache: Cache,
    ) -> tuple[Float[Array, "B L D"], Cache]:
        """As calling the model, for tokens that follow those in `cache`; also returns the cache with these added."""
        placement = Placement(positions, segment_ids)
        slots = Placement(
            *(
                jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (0, cache.used))
                for old, new in zip(cache.placement, placement, strict=True)
            )
        )
        hidden, kept = self._run(tokens, placement, cache._replace(placement=slots))
        assert kept is not None
        return hidden, kept._replace(used=cache.used + tokens.shape[1])

    def _run(
        self, tokens: Int[Array, "B L"], placement: Placement, cache: Cache | None
    ) -> tuple[Float[Array, "B L D"], Cache | None]:
        rotary = rotation(self.config, placement.positions)
        blocks: tuple[nnx.GraphDef[Any], nnx.State] = nnx.split(self.blocks)
        graphdef, params = blocks

        def block(carry, scanned):
            x, cache = carry
            index, params = scanned
            for i, layer in enumerate(nnx.merge(graphdef, params)):
                if cache is None:
                    x, _ = layer(x, placement, rotary)
                else:
                    view = LayerCache(cache.keys[i], cache.values[i], cache.placement, index, cache.used)
                    x, view = layer(x, placement, rotary, view)
                    cache.keys[i], cache.values[i] = view.keys, view.values
            return (x, cache), None

        depth = self.config.num_layers // len(self.config.pattern)
        (x, cache), _ = jax.lax.scan(block, (self.embedder(tokens), cache), (jnp.arange(depth), params))
        return self.final_norm(x), cache


def abstract_decoder(
    config: DecoderConfig, *, param_dtype: DTypeLike, compute_dtype: DTypeLike
) -> tuple[nnx.GraphDef[Any], dict[str, Any]]:
    """A decoder without arrays: its graph, and the shapes of its parameters as nested dictionaries."""
    make = functools.partial(Decoder, config, param_dtype=param_dtype, compute_dtype=compute_dtype)
    graph, state = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))), nnx.Param)
    return graph, nnx.to_pure_dict(state)


def named_parameters(module: nnx.Module | nnx.State) -> dict[str, nnx.Param]:
    """Every parameter by its path, such as `blocks.0.attention.query.weight`; works on shapes as on arrays."""
    state = nnx.state(module, nnx.Param) if isinstance(module, nnx.Module) else module
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}
