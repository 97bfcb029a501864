"""A decoder spread over the mesh, forward and backward, as one device sees it.

The functions here run inside a `jax.shard_map` over all mesh axes, on this device's rows and its parts of the
parameters. A layer's parameters are gathered over `fsdp` just before they are needed and dropped after.

The backward pass is written out, layer by layer in reverse, so that each layer's gradient is added to the accumulated
one in place as soon as it is known: all gradients of one microbatch never exist at once. Each layer's own derivative is
JAX's. The loss is any function of log-probabilities, and its derivative JAX's too.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from fusejax.distributed.collectives import as_stored, gather_layer, sum_gradient, sum_unsplit
from fusejax.distributed.sharding import parameter_specs
from fusejax.models.attention import block_attention, splash
from fusejax.models.attention.dispatch import Kernel, Tokens
from fusejax.models.decoder.config import DecoderConfig
from fusejax.models.decoder.decoder import Layer, abstract_decoder
from fusejax.models.decoder.layers import rms_norm
from fusejax.models.decoder.prefix_sharing import Sharing, collect, spread
from fusejax.models.decoder.rotary import rotation
from fusejax.objectives.logprobs import Projection, Residuals, target_logprobs, target_logprobs_vjp

Remat = Literal["none", "dots", "full"]
Params = dict[str, Any]
"""A decoder's parameters as nested dictionaries of arrays: `nnx.to_pure_dict(nnx.state(decoder, nnx.Param))`."""
Blocks = dict[int, Params]
"""Those of the layers, by their place in a block."""
Rows = Mapping[str, Array]
"""`tokens, positions, segment_ids` int32 and `loss_mask` bool, all [R, L], and whatever the loss needs. Rows that share
tokens (`models.sharing`) have its `first, second` int32 [R, C] and `source` int32 [R, L] too; C is L in others."""
Sums = dict[str, Float32[Array, ""]]
Loss = Callable[[Float32[Array, "R L"], Rows], Sums]
"""From log-probabilities of the target tokens (0 elsewhere) to what is added up; the entry `loss` is differentiated."""

_RECOMPUTED = ("all_gather", "all_gather_invariant", "convert_element_type", "transpose", "reshape", "name")


def _all_but_parameters(primitive: Any, *_: Any, **__: Any) -> bool:
    """Saves what a layer computes, but not the gathered parameters, which would be the whole model on every device."""
    return primitive.name not in _RECOMPUTED


_POLICIES = {
    "none": _all_but_parameters,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(block_attention.SAVED, splash.RESIDUALS),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class _Trace(NamedTuple):
    """What the forward pass leaves for the backward pass."""

    layers: Any
    hidden: Any
    logprobs: Residuals


class Network:
    """The passes of a decoder.

    Args:
      config: of the decoder.
      mesh: its axes of size 1 cost nothing.
      compute_dtype: see `Decoder`.
      remat: what the backward pass computes again of each layer: nothing; all but products with parameters and
        attention (that too on GPUs, whose kernels name nothing to save); everything.
      kernel: of the attention.
      unroll: write loops out and count every token as a target, for a compiler's count of costs.
    """

    def __init__(
        self,
        config: DecoderConfig,
        mesh: Mesh,
        *,
        param_dtype: DTypeLike,
        compute_dtype: DTypeLike,
        remat: Remat,
        kernel: Kernel = "xla",
        unroll: bool = False,
    ):
        self.config, self.compute_dtype, self.unroll = config, compute_dtype, unroll
        self.fsdp = "fsdp" if mesh.shape["fsdp"] > 1 else None
        self.tensor = "tensor" if mesh.shape["tensor"] > 1 else None
        # Written out, few large chunks: they cost the same.
        chunks = {"chunk_tokens": 2**16, "chunk_words": 2**16} if unroll else {}
        self.projection = Projection(config.logits_softcap, self.fsdp, self.tensor, **chunks, unroll=unroll)
        _, shapes = abstract_decoder(config, param_dtype=param_dtype, compute_dtype=compute_dtype)
        blocks = parameter_specs(shapes, mesh)["blocks"]
        # In the layers' own trees there is no axis of the stack.
        specs = jax.tree.map(lambda spec: jax.sharding.PartitionSpec(*spec[1:]), blocks)
        policy = _POLICIES[remat]
        # A scan's body is compiled apart from the rest, so what is recomputed cannot be merged back.
        self._layers = {
            position: jax.checkpoint(self._layer(window, specs[position], kernel), policy=policy, prevent_cse=unroll)
            for position, window in enumerate(config.pattern)
        }

    def _layer(self, window: int | None, specs: Any, kernel: Kernel):
        def make():
            return Layer(
                self.config,
                window,
                tensor_axis=self.tensor,
                kernel=kernel,
                stack=(),
                param_dtype=jnp.dtype(jnp.float32),
                rngs=nnx.Rngs(0),
            )

        graph, _ = nnx.split(nnx.eval_shape(make))

        def layer(
            params: Params, x: Float[Array, "R C D"], tokens: Tokens, rotary: Any, sharing: Sharing | None
        ) -> Float[Array, "R C D"]:
            if self.fsdp is not None:
                params = gather_layer(params, specs, self.fsdp, self.compute_dtype)
            if self.tensor is not None:
                # A norm of heads, say: whole on every device, but used on the heads of each.
                parts = {name: sum_unsplit(params[name], specs[name], self.tensor) for name in Layer.PARTS}
                params = {**params, **parts}
            return nnx.merge(graph, params)(x, tokens, jax.lax.stop_gradient(rotary), sharing=sharing)[0]

        return layer

    def logprobs(self, params: Params, rows: Rows) -> Float32[Array, "R L"]:
        """Log-probabilities of this device's target tokens, 0 elsewhere."""
        return self._forward(params, rows)[0]

    def add_gradients(self, params: Params, gradients: Params, rows: Rows, loss: Loss) -> tuple[Params, Sums]:
        """Adds this device's gradients of the loss to `gradients`, in place; also returns what the loss sums up.

        `gradients` has the shapes of `params`, in float32. The gradient of a part of a parameter is the sum over all
        devices along `fsdp` and `tensor`; replicas have sums of their own.
        """
        logprobs, trace = self._forward(params, rows)

        def summed(logprobs: Float32[Array, "R L"]) -> tuple[Float32[Array, ""], Sums]:
            sums = loss(logprobs, rows)
            return sums["loss"], sums

        d_logprobs, sums = jax.grad(summed, has_aux=True)(logprobs)
        gradients = dict(gradients)
        head = "embedder" if self.config.tie_embeddings else "lm_head"
        d_hidden, d_head = target_logprobs_vjp(
            trace.logprobs, params[head]["embedding"], d_logprobs, gradients[head]["embedding"], self.projection
        )
        gradients[head] = {"embedding": d_head}
        d_norm, dx = trace.hidden(d_hidden)
        gradients["final_norm"] = jax.tree.map(_added, gradients["final_norm"], d_norm)
        gradients["blocks"], dx = self._layers_backward(params["blocks"], gradients["blocks"], trace.layers, dx, rows)
        embedding = self._embed_backward(gradients["embedder"]["embedding"], dx, _computed(rows["tokens"], rows))
        gradients["embedder"] = {"embedding": embedding}
        return gradients, sums

    def _forward(self, params: Params, rows: Rows) -> tuple[Float32[Array, "R L"], _Trace]:
        x = self._embed(params["embedder"]["embedding"], _computed(rows["tokens"], rows))
        places = self._places(rows)

        def block(x, params):
            params = self._as_stored(params)
            vjps = []
            for position, layer in self._layers.items():
                vjp: Any
                x, vjp = jax.vjp(layer, params[position], x, *places)
                # Parameters and places are at hand when the backward pass comes; only the input is kept.
                vjp.args_res[:] = [None, vjp.args_res[1], None, None, None]
                vjps.append(vjp)
            return x, vjps

        x, layers = jax.lax.scan(block, x, params["blocks"], unroll=self.unroll)
        hidden, hidden_vjp = jax.vjp(functools.partial(self._hidden, _sharing(rows)), params["final_norm"], x)
        head = params["embedder" if self.config.tie_embeddings else "lm_head"]["embedding"]
        logprobs, residuals = target_logprobs(hidden, head, rows["tokens"], rows["loss_mask"], self.projection)
        return logprobs, _Trace(layers, hidden_vjp, residuals)

    def _layers_backward(self, params: Blocks, gradients: Blocks, vjps: Any, dx: Array, rows: Rows):
        places = self._places(rows)

        def block(carry, scanned):
            dx, gradients = carry
            index, params, vjps = scanned
            params = self._as_stored(params)
            for position, vjp in reversed(list(enumerate(vjps))):
                vjp.args_res[:] = [params[position], vjp.args_res[1], *places]
                d_params, dx, *_ = vjp(dx)
                added = jax.tree.map(lambda old, new: _added_at(index, old, new), gradients[position], d_params)
                gradients = {**gradients, position: added}
            return (dx, gradients), None

        depth = self.config.num_layers // len(self.config.pattern)
        scanned = (jnp.arange(depth), params, vjps)
        (dx, gradients), _ = jax.lax.scan(block, (dx, gradients), scanned, reverse=True, unroll=self.unroll)
        return gradients, dx

    def _as_stored(self, params: Any) -> Any:
        return jax.tree.map(lambda x: as_stored(x, self.compute_dtype), params)

    def _places(self, rows: Rows) -> tuple[Tokens, Any, Sharing | None]:
        """Where tokens stand, as attention and rotary embedding need it."""
        positions = _computed(rows["positions"], rows)
        return Tokens(rows["positions"], rows["segment_ids"]), rotation(self.config, positions), _sharing(rows)

    def _hidden(self, sharing: Sharing | None, params: Params, x: Float[Array, "R C D"]) -> Float[Array, "R L D"]:
        """What the loss sees of the last layer's output."""
        if self.fsdp is not None:
            params = jax.tree.map(lambda scale: sum_gradient(scale, self.fsdp), params)
        hidden = rms_norm(x, params["scale"], eps=self.config.norm_eps, offset=self.config.norm_offset)
        return hidden if sharing is None else spread(hidden, sharing)

    def _embed(self, embedding: Float[Array, "words channels"], tokens: Int[Array, "R C"]) -> Float[Array, "R C D"]:
        """Each device looks up its channels of the tokens of all; then every token's channels come together."""
        ids = self._words(embedding, tokens)
        vectors = embedding.at[ids].get(mode="fill", fill_value=0).astype(self.compute_dtype)
        if self.tensor is not None:
            vectors = jax.lax.psum(vectors, self.tensor)
        if self.fsdp is not None:
            vectors = jax.lax.all_to_all(vectors, self.fsdp, split_axis=0, concat_axis=1, tiled=True)
        return self._scaled(vectors).reshape(*tokens.shape, -1)

    def _embed_backward(
        self, gradient: Float32[Array, "words channels"], dx: Float[Array, "R C D"], tokens: Int[Array, "R C"]
    ):
        dx = self._scaled(dx.reshape(tokens.size, -1))
        if self.fsdp is not None:
            dx = jax.lax.all_to_all(dx, self.fsdp, split_axis=1, concat_axis=0, tiled=True)
        return gradient.at[self._words(gradient, tokens)].add(dx.astype(gradient.dtype), mode="drop")

    def _words(self, embedding: Array, tokens: Int[Array, "R C"]) -> Int[Array, "T"]:
        """The tokens of all devices along `fsdp`, as numbers of this device's words; beyond them if another has it."""
        ids = tokens.reshape(-1)
        if self.fsdp is not None:
            ids = jax.lax.all_gather(ids, self.fsdp, tiled=True)
        if self.tensor is not None:
            words = embedding.shape[0]
            ids = ids - jax.lax.axis_index(self.tensor) * words
            ids = jnp.where((ids >= 0) & (ids < words), ids, words)
        return ids

    def _scaled(self, x: Array) -> Array:
        scale = self.config.embedding_scale
        return x if scale == 1 else x * jnp.asarray(scale, x.dtype)


def _sharing(rows: Rows) -> Sharing | None:
    return Sharing(rows["first"], rows["second"], rows["source"]) if "source" in rows else None


def _computed(values: Int[Array, "R L"], rows: Rows) -> Int[Array, "R C"]:
    sharing = _sharing(rows)
    return values if sharing is None else collect(values, sharing)


def _added_at(index: Array, old: Array, new: Array) -> Array:
    """`old` with `new` added to one entry of its first axis, in place."""
    entry = jax.lax.dynamic_index_in_dim(old, index, keepdims=False)
    return jax.lax.dynamic_update_index_in_dim(old, _added(entry, new), index, 0)


def _added(old: Array, new: Array) -> Array:
    return old + new.astype(old.dtype)
