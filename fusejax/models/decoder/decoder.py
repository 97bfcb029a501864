"""One decoder for all families: what differs between them is in `DecoderConfig`.

Layers are scanned: the parameters of all blocks (see `DecoderConfig.pattern`) are stacked on a leading axis, so compile
time does not grow with depth. `blocks.0.mlp.gate.weight` holds that weight of the first layer of every block. Where the
last block is incomplete (`DecoderConfig.tail`), the stacks of the layers that it has are longer by one than the others;
it is computed after the scan over whole blocks.

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
from jaxtyping import Array, Float, Float32, Int, Shaped

from fusejax.distributed.collectives import sum_gradient, sum_parts
from fusejax.models.attention.dispatch import Kernel, Placement, attention
from fusejax.models.decoder.config import DecoderConfig
from fusejax.models.decoder.layers import Embedder, Head, Linear, RMSNorm, Shape, precision
from fusejax.models.decoder.prefix_sharing import SharedPrefixes, collect, spread
from fusejax.models.decoder.rotary import Rotation, rotate, rotations

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class Cache(NamedTuple):
    """Keys and values of the tokens so far, in slots that all rows fill together. Empty slots have segment 0."""

    keys: list[Float[Array, "_ B S K H"]]
    """One array for each layer of the block, with all blocks on its first axis."""
    values: list[Float[Array, "_ B S K H"]]
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
        self.head_norms = config.head_norms
        if config.head_norms:
            norm = functools.partial(RMSNorm, config.head_dim, eps=config.norm_eps, offset=config.norm_offset)
            self.query_norm = norm(stack=stack, param_dtype=param_dtype)
            self.key_norm = norm(stack=stack, param_dtype=param_dtype)

    def __call__(
        self,
        x: Float[Array, "B C D"],
        placement: Placement,
        rotary: Rotation,
        cache: LayerCache | None,
        shared: SharedPrefixes | None,
    ) -> tuple[Float[Array, "B C D"], LayerCache | None]:
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.head_norms:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = rotate(query, rotary), rotate(key, rotary)
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
        self.blocks = nnx.List(
            Layer(config, window, stack=(size,), param_dtype=param_dtype, rngs=rngs)
            for window, size in zip(config.pattern, stack_sizes(config), strict=True)
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
        shapes = [(size, rows, slots, config.num_kv_heads, config.head_dim) for size in stack_sizes(config)]
        none = jnp.zeros((rows, slots), jnp.int32)
        return Cache(
            keys=[jnp.zeros(shape, self.compute_dtype) for shape in shapes],
            values=[jnp.zeros(shape, self.compute_dtype) for shape in shapes],
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
        rotary = rotations(self.config, placement.positions)
        stacks = [nnx.split(layer) for layer in self.blocks]

        def block(x: Array, cache: Cache | None, index: Any, layers: int) -> tuple[Array, Cache | None]:
            """The first `layers` layers of a block."""
            for i, (graphdef, stack) in enumerate(stacks[:layers]):
                layer = nnx.merge(graphdef, jax.tree.map(functools.partial(entry, index=index), stack))
                if cache is None:
                    x, _ = layer(x, placement, rotary[i])
                else:
                    view = LayerCache(cache.keys[i], cache.values[i], cache.placement, index, cache.used)
                    x, written = layer(x, placement, rotary[i], view)
                    assert written is not None
                    cache.keys[i], cache.values[i] = written.keys, written.values
            return x, cache

        whole = self.config.num_blocks
        carry, _ = jax.lax.scan(
            lambda carry, index: (block(*carry, index, len(stacks)), None),
            (self.embedder(tokens), cache),
            jnp.arange(whole),
        )
        x, cache = block(*carry, whole, len(self.config.tail))
        return self.final_norm(x), cache


def stack_sizes(config: DecoderConfig) -> list[int]:
    """For each layer of the pattern, how many layers its parameters stack."""
    return [config.num_blocks + (position < len(config.tail)) for position in range(len(config.pattern))]


def entry(stack: Shaped[Array, "_ ..."], index: int | Int[Array, ""]) -> Shaped[Array, "..."]:
    """The part of a stacked parameter that belongs to one block."""
    return jax.lax.dynamic_index_in_dim(stack, index, keepdims=False)


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
