"""Forward and backward pass of a decoder over the mesh: data parallelism, FSDP and tensor parallelism.

Everything below the public methods of `Network` runs inside a `jax.shard_map` over all mesh axes, on one device's rows
and parts of the parameters. A layer's parameters are gathered over `fsdp` just before they are needed and freed after.

The backward pass is written out, layer by layer in reverse, so that each layer's gradient is added to the gradient
accumulator in place as soon as it is known: the gradients of a microbatch are never all materialised. JAX
differentiates each layer, and the loss, which can be any function of log-probabilities.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from fusejax.common.cli import UserError
from fusejax.data.batch import Microbatch
from fusejax.distributed.collectives import as_stored, gather_layer, sum_gradient, sum_unsplit
from fusejax.distributed.sharding import BATCH, parameter_specs, with_replicas
from fusejax.models.attention import block_attention, splash
from fusejax.models.attention.dispatch import Kernel, Placement
from fusejax.models.decoder.config import DecoderConfig
from fusejax.models.decoder.decoder import Layer, abstract_decoder, entry
from fusejax.models.decoder.layers import rms_norm
from fusejax.models.decoder.prefix_sharing import SharedPrefixes, collect, spread
from fusejax.models.decoder.rotary import rotations
from fusejax.objectives.logprobs import (
    Logprobs,
    Projection,
    Residuals,
    SoftTargets,
    target_logprobs,
    target_logprobs_vjp,
)
from fusejax.objectives.microbatch_loss import Loss, Sums, answer_sums

Remat = Literal["none", "dots", "full"]
Params = dict[str, Any]
"""A decoder's parameters as nested dictionaries of arrays: `nnx.to_pure_dict(nnx.state(decoder, nnx.Param))`."""
Blocks = dict[int, Params]
"""The layers' parameters, by the layer's position in its block."""


class Accumulator(NamedTuple):
    """What gradient accumulation adds up over the microbatches of a step."""

    gradients: Params
    """float32; a leading axis has one entry for each replica of the parameters."""
    sums: dict[str, Float32[Array, "devices"]]
    """What the loss returns; one entry for each part that the rows are split into."""


_RECOMPUTED = ("all_gather", "all_gather_invariant", "convert_element_type", "transpose", "reshape", "name")


def _all_but_parameters(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """Saves what a layer computes, but not the gathered parameters, which would be the whole model on every device."""
    # A function with a gradient of its own is one primitive; what it does is inside.
    inside = parameters.get("call_jaxpr")
    names = [equation.primitive.name for equation in inside.eqns] if inside else [primitive.name]
    return not any(name in _RECOMPUTED for name in names)


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
    tail: Any
    hidden: Any
    logprobs: Residuals


class Network:
    """The passes of a decoder and its loss: `accumulate`, `evaluate` and `answer_logprobs`, functions of whole arrays.

    Args:
      config: of the decoder.
      loss: the summed loss of a microbatch.
      mesh: its axes of size 1 cost nothing.
      compute_dtype: see `Decoder`.
      remat: what the backward pass recomputes of each layer. `none`: nothing; `dots`: all but matrix products with
        parameters and attention (on GPUs attention too, as its kernels name no residuals to save); `full`: everything.
      kernel: of the attention.
      exchanges: how gradients are summed along `fsdp`, as of `collectives.scatter_sum`.
    """

    def __init__(
        self,
        config: DecoderConfig,
        mesh: Mesh,
        loss: Loss,
        *,
        param_dtype: DTypeLike,
        compute_dtype: DTypeLike,
        remat: Remat,
        kernel: Kernel = "xla",
        exchanges: bool = False,
    ):
        _check_heads(config, mesh)
        self.config, self.mesh, self.loss, self.compute_dtype = config, mesh, loss, compute_dtype
        self.exchanges = exchanges
        self.fsdp = "fsdp" if mesh.shape["fsdp"] > 1 else None
        self.tensor = "tensor" if mesh.shape["tensor"] > 1 else None
        vocab_size = config.vocab_size if config.vocab_size % mesh.shape["tensor"] else None
        self.projection = Projection(
            config.logits_softcap, self.fsdp, self.tensor, vocab_size=vocab_size, exchanges=exchanges
        )
        _, shapes = abstract_decoder(config, param_dtype=param_dtype, compute_dtype=compute_dtype)
        self._params = parameter_specs(shapes, mesh)
        self._accumulator = Accumulator(jax.tree.map(with_replicas, self._params), BATCH)  # type: ignore[arg-type]
        # The parameters of a single layer have no stack axis.
        specs = jax.tree.map(lambda spec: jax.sharding.PartitionSpec(*spec[1:]), self._params["blocks"])
        policy = _POLICIES[remat]
        layers = [self._layer(window, specs[position], kernel) for position, window in enumerate(config.pattern)]
        checkpoint = functools.partial(jax.checkpoint, policy=policy)
        # `prevent_cse` only outside of loops: a scan's body is compiled apart, so recomputation cannot be merged back.
        self._layers = [checkpoint(layer, prevent_cse=False) for layer in layers]
        self._tail = [checkpoint(layer, prevent_cse=True) for layer in layers[: len(config.tail)]]

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
            params: Params, x: Float[Array, "R C D"], placement: Placement, rotary: Any, shared: SharedPrefixes | None
        ) -> Float[Array, "R C D"]:
            if self.fsdp is not None:
                params = gather_layer(params, specs, self.fsdp, self.compute_dtype, exchanges=self.exchanges)
            if self.tensor is not None:
                # A norm of heads, say, is replicated, but each device applies it to its own heads.
                parts = {name: sum_unsplit(params[name], specs[name], self.tensor) for name in Layer.PARTS}
                params = {**params, **parts}
            return nnx.merge(graph, params)(x, placement, jax.lax.stop_gradient(rotary), shared=shared)[0]

        return layer

    def accumulate(self, params: Params, accumulator: Accumulator, microbatch: Microbatch) -> Accumulator:
        """The accumulator with one microbatch's gradients and sums added."""

        def local(params: Params, accumulator: Accumulator, microbatch: Microbatch) -> Accumulator:
            own = jax.tree.map(lambda x: x[0], accumulator)
            gradients, sums = self._add_gradients(params, own.gradients, microbatch)
            return jax.tree.map(lambda x: x[None], Accumulator(gradients, jax.tree.map(jnp.add, own.sums, sums)))

        return self._mapped(local, self._params, self._accumulator, BATCH, out=self._accumulator)(
            params, accumulator, microbatch
        )

    def evaluate(self, params: Params, microbatch: Microbatch) -> Sums:
        """The sums of the loss over a microbatch."""

        def local(params: Params, microbatch: Microbatch) -> dict[str, Float32[Array, "1"]]:
            sums = self.loss(self._forward(params, microbatch)[0], microbatch)
            return jax.tree.map(lambda x: x[None], sums)

        return jax.tree.map(jnp.sum, self._mapped(local, self._params, BATCH, out=BATCH)(params, microbatch))

    def answer_logprobs(
        self, params: Params, microbatch: Microbatch, answers: int
    ) -> tuple[Int[Array, "R P"], tuple[Float32[Array, "R P"], ...]]:
        """`pair_ids`, and the summed log-probabilities of each of the examples' answers."""

        def local(params: Params, microbatch: Microbatch):
            return microbatch["pair_ids"], answer_sums(self._forward(params, microbatch)[0].target, microbatch, answers)

        return self._mapped(local, self._params, BATCH, out=BATCH)(params, microbatch)

    def _mapped(self, function: Any, *specs: Any, out: Any) -> Any:
        """Turns a function of one device's parts into one of whole arrays, split over the mesh as the specs say."""
        return jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=out, check_vma=False)

    def _add_gradients(self, params: Params, gradients: Params, microbatch: Microbatch) -> tuple[Params, Sums]:
        """Adds this device's gradients of the loss to `gradients`, in place; also returns what the loss sums up.

        `gradients` has the shapes of `params`, in float32. The gradient of a part of a parameter is summed over the
        devices along `fsdp` and `tensor`, but not over replicas.
        """
        logprobs, trace = self._forward(params, microbatch)

        def summed(logprobs: Logprobs) -> tuple[Float32[Array, ""], Sums]:
            sums = self.loss(logprobs, microbatch)
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
        gradients["blocks"], dx = self._layers_backward(params["blocks"], gradients["blocks"], trace, dx, microbatch)
        embedding = self._embed_backward(
            gradients["embedder"]["embedding"], dx, _computed(microbatch["tokens"], microbatch)
        )
        gradients["embedder"] = {"embedding": embedding}
        return gradients, sums

    def _forward(self, params: Params, microbatch: Microbatch) -> tuple[Logprobs, _Trace]:
        x = self._embed(params["embedder"]["embedding"], _computed(microbatch["tokens"], microbatch))
        placements = self._placements(microbatch)

        def block(x, index, layers):
            vjps = []
            for position, layer in enumerate(layers):
                vjp: Any
                x, vjp = jax.vjp(layer, self._entry(params["blocks"][position], index), x, *placements[position])
                # The backward pass is given parameters and placement again, so only the input is kept.
                vjp.args_res[:] = [None, vjp.args_res[1], None, None, None]
                vjps.append(vjp)
            return x, vjps

        whole = self.config.num_blocks
        scanned = functools.partial(block, layers=self._layers)
        x, layers = jax.lax.scan(scanned, x, jnp.arange(whole))
        x, tail = block(x, whole, self._tail)
        hidden, hidden_vjp = jax.vjp(functools.partial(self._hidden, _shared(microbatch)), params["final_norm"], x)
        head = params["embedder" if self.config.tie_embeddings else "lm_head"]["embedding"]
        logprobs, residuals = target_logprobs(
            hidden, head, microbatch["tokens"], microbatch["loss_mask"], self.projection, _soft(microbatch)
        )
        return logprobs, _Trace(layers, tail, hidden_vjp, residuals)

    def _layers_backward(self, params: Blocks, gradients: Blocks, trace: _Trace, dx: Array, microbatch: Microbatch):
        placements = self._placements(microbatch)

        def block(carry, index, vjps):
            dx, gradients = carry
            for position, vjp in reversed(list(enumerate(vjps))):
                vjp.args_res[:] = [self._entry(params[position], index), vjp.args_res[1], *placements[position]]
                d_params, dx, *_ = vjp(dx)
                add = functools.partial(_added_at, index)
                gradients = {**gradients, position: jax.tree.map(add, gradients[position], d_params)}
            return dx, gradients

        whole = self.config.num_blocks
        carry = block((dx, gradients), whole, trace.tail)
        (dx, gradients), _ = jax.lax.scan(
            lambda carry, scanned: (block(carry, *scanned), None),
            carry,
            (jnp.arange(whole), trace.layers),
            reverse=True,
        )
        return gradients, dx

    def _entry(self, stacks: Params, index: Any) -> Params:
        """One layer's parameters."""
        return jax.tree.map(lambda x: as_stored(entry(x, index), self.compute_dtype), stacks)

    def _placements(self, microbatch: Microbatch) -> list[tuple[Placement, Any, SharedPrefixes | None]]:
        """For each layer of the pattern, what it takes beside parameters and input: the tokens' places in forms that
        attention and rotary embedding take."""
        positions = _computed(microbatch["positions"], microbatch)
        placement = Placement(microbatch["positions"], microbatch["segment_ids"])
        return [(placement, rotary, _shared(microbatch)) for rotary in rotations(self.config, positions)]

    def _hidden(self, shared: SharedPrefixes | None, params: Params, x: Float[Array, "R C D"]) -> Float[Array, "R L D"]:
        """The last layer's output after the final norm, one vector per token slot."""
        if self.fsdp is not None:
            params = jax.tree.map(lambda scale: sum_gradient(scale, self.fsdp), params)
        hidden = rms_norm(x, params["scale"], eps=self.config.norm_eps, offset=self.config.norm_offset)
        return hidden if shared is None else spread(hidden, shared)

    def _embed(self, embedding: Float[Array, "words channels"], tokens: Int[Array, "R C"]) -> Float[Array, "R C D"]:
        """Looks up this device's channels for all devices' tokens; an all-to-all then joins each token's channels."""
        ids = self._local_ids(embedding, tokens)
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
        return gradient.at[self._local_ids(gradient, tokens)].add(dx.astype(gradient.dtype), mode="drop")

    def _local_ids(self, embedding: Array, tokens: Int[Array, "R C"]) -> Int[Array, "T"]:
        """Tokens of all devices along `fsdp`, as rows of this device's part; past its end if another device has it."""
        ids = tokens.reshape(-1)
        if self.fsdp is not None:
            ids = jax.lax.all_gather(ids, self.fsdp, tiled=True)
        if self.tensor is not None:
            size = embedding.shape[0]
            ids = ids - jax.lax.axis_index(self.tensor) * size
            ids = jnp.where((ids >= 0) & (ids < size), ids, size)
        return ids

    def _scaled(self, x: Array) -> Array:
        scale = self.config.embedding_scale
        return x if scale == 1 else x * jnp.asarray(scale, x.dtype)


def check_divides(config: DecoderConfig, mesh: Mesh) -> None:
    """Checks that the mesh can split the decoder. Vocabularies are padded, so they may have any size.

    Raises:
      UserError: an axis does not divide what it would split.
    """
    _check_heads(config, mesh)
    dtype = jnp.dtype(jnp.float32)
    _, shapes = abstract_decoder(config, param_dtype=dtype, compute_dtype=dtype)
    parameter_specs(shapes, mesh)


def _check_heads(config: DecoderConfig, mesh: Mesh) -> None:
    if config.num_kv_heads % mesh.shape["tensor"]:
        raise UserError(f"mesh.tensor={mesh.shape['tensor']} does not divide num_key_value_heads {config.num_kv_heads}")


def _shared(microbatch: Microbatch) -> SharedPrefixes | None:
    return (
        SharedPrefixes(microbatch["first"], microbatch["second"], microbatch["source"], microbatch.get("third"))
        if "source" in microbatch
        else None
    )


def _soft(microbatch: Microbatch) -> SoftTargets | None:
    return SoftTargets(microbatch["soft_ids"], microbatch["soft_weights"]) if "soft_ids" in microbatch else None


def _computed(values: Int[Array, "R L"], microbatch: Microbatch) -> Int[Array, "R C"]:
    shared = _shared(microbatch)
    return values if shared is None else collect(values, shared)


def _added_at(index: int | Int[Array, ""], old: Array, new: Array) -> Array:
    """`old` with `new` added to one entry of its first axis, in place."""
    entry = jax.lax.dynamic_index_in_dim(old, index, keepdims=False)
    return jax.lax.dynamic_update_index_in_dim(old, _added(entry, new), index, 0)


def _added(old: Array, new: Array) -> Array:
    return old + new.astype(old.dtype)
