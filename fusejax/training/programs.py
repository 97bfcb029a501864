"""The compiled programs of a run, and the shapes and layouts of all that goes into them.

Training calls them with arrays, planning compiles them from the shapes alone: what is planned is what will run.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from fusejax.config import ALMFusion, TrainConfig
from fusejax.data.batch import BatchShape
from fusejax.distributed.mesh import BATCH_AXES, REPLICAS, axis_size
from fusejax.distributed.sharding import batch_sharding, laid_out, replicated, with_replicas
from fusejax.distributed.tuning import tuning
from fusejax.models.attention.dispatch import kernel_for
from fusejax.models.decoder.config import DecoderConfig
from fusejax.models.decoder.decoder import abstract_decoder
from fusejax.objectives.microbatch_loss import make_loss
from fusejax.training.network import Accumulator, Network
from fusejax.training.optimizer import make_optimizer
from fusejax.training.state import abstract_state, initializer
from fusejax.training.step import apply


class Programs:
    """The programs of a run, each a `jax.jit` of arrays with the shapes and shardings given here.

    Args:
      num_steps: of the whole run. Only `apply` depends on it, by its schedule; None: `set_steps` follows.
      weights: whether examples have weights.

    Attributes:
      params, state, accumulator, microbatch: their shapes, dtypes and shardings.
      reference_microbatch: as `microbatch`, but with what the loader makes alone.
      eval_microbatch: as `microbatch`, but without what is fused: evaluations are on the answers alone.
      init_state: params -> state; the parameters are donated.
      zeros: () -> an accumulator of zeros.
      zeroed: gradients, sums (of an accumulator) -> an accumulator of zeros, with its gradients in their place.
      accumulate: params, gradients, sums, microbatch -> accumulator, with the microbatch's gradients and sums added.
        The sums are not overwritten: when they are ready, their microbatch is done.
      apply: state, accumulator -> state after the step, the step's metrics.
      evaluate: params, eval_microbatch -> sums of the loss and of the other metrics.
      reference: params, reference_microbatch -> pair_ids, log-probabilities of each answer, on every device.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: DecoderConfig,
        mesh: Mesh,
        *,
        num_steps: int | None = None,
        weights: bool = False,
    ):
        self.mesh, self.model = mesh, model
        self.rows_per_microbatch = config.packing.rows_per_device * axis_size(mesh, BATCH_AXES)
        """Rows of a microbatch, over all devices."""
        dtypes = {"param_dtype": jnp.dtype(config.dtype.params), "compute_dtype": jnp.dtype(config.dtype.compute)}
        _, shapes = abstract_decoder(model, **dtypes)
        optimizer, moments = make_optimizer(config.optimizer, num_steps or 1), jnp.dtype(config.optimizer.moments)
        kernel = kernel_for(mesh.devices.flat[0].platform)
        loss = make_loss(
            config.preference,
            config.fusion.clm_weight if config.fusion else None,
            config.fusion.chunk_temperature if isinstance(config.fusion, ALMFusion) else None,
        )
        tuned = tuning(mesh)
        network = Network(model, mesh, loss, **dtypes, remat=config.remat, kernel=kernel, exchanges=tuned.exchanges)

        self.params = laid_out(shapes, mesh)
        self.state = abstract_state(self.params, optimizer, mesh, moments=moments)
        shape = config.batch_shape(self.rows_per_microbatch, weights=weights)
        self.microbatch = self._microbatch(shape)
        loaded = dataclasses.replace(shape, reference=False, fused=False, progress=False)
        self.reference_microbatch = self._microbatch(loaded)
        self.eval_microbatch = self._microbatch(dataclasses.replace(shape, soft=0, chunks=False))
        sums = jax.eval_shape(network.evaluate, self.params, self.microbatch)
        self.accumulator = Accumulator(
            jax.tree.map(self._per_replica, self.params),
            jax.tree.map(lambda x: self._per_part(x.dtype), sums),
        )

        def shardings(tree: Any) -> Any:
            return jax.tree.map(lambda x: x.sharding, tree)

        # The programs that gather parameters and multiply; the others have next to nothing to gain.
        compiled = functools.partial(jax.jit, compiler_options=tuned.compiler_options)
        # Outputs have the inputs' shardings, so that the programs compiled for the first step serve all steps.
        state, accumulator, everywhere = shardings(self.state), shardings(self.accumulator), replicated(mesh)
        self.init_state = jax.jit(initializer(optimizer, moments=moments), out_shardings=state, donate_argnums=0)
        self.zeros = jax.jit(
            lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.accumulator), out_shardings=accumulator
        )
        self.accumulate = compiled(
            lambda params, gradients, sums, microbatch: network.accumulate(
                params, Accumulator(gradients, sums), microbatch
            ),
            donate_argnums=1,
            out_shardings=accumulator,
        )
        self._optimizer = config.optimizer
        self._jit_apply = functools.partial(jax.jit, donate_argnums=0, out_shardings=(state, everywhere))
        self.apply = self._jit_apply(functools.partial(apply, optimizer))
        # A separate program: as a part of `apply`, the zeros would get new memory, and the sums would be copied.
        self.zeroed = jax.jit(
            lambda *accumulator: Accumulator(*jax.tree.map(jnp.zeros_like, accumulator)),
            donate_argnums=0,
            keep_unused=True,
            out_shardings=accumulator,
        )
        self.evaluate = compiled(network.evaluate, out_shardings=everywhere)
        # On every device, so that every host has every example.
        reference = functools.partial(network.answer_logprobs, answers=config.sequences_per_example)
        self.reference = compiled(reference, out_shardings=everywhere)

    def set_steps(self, num_steps: int) -> None:
        """Makes `apply` that of a run of so many steps."""
        self.apply = self._jit_apply(functools.partial(apply, make_optimizer(self._optimizer, num_steps)))

    def arguments(self, name: str) -> tuple[Any, ...]:
        """Shapes, dtypes and shardings of what one of the large programs is called with."""
        return {
            "reference": (self.params, self.reference_microbatch),
            "accumulate": (self.params, *self.accumulator, self.microbatch),
            "apply": (self.state, self.accumulator),
            "zeroed": (*self.accumulator,),
            "evaluate": (self.params, self.eval_microbatch),
        }[name]

    def _per_replica(self, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(self.mesh, with_replicas(x.sharding.spec))
        return jax.ShapeDtypeStruct((axis_size(self.mesh, REPLICAS), *x.shape), jnp.float32, sharding=sharding)

    def _per_part(self, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((axis_size(self.mesh, BATCH_AXES),), dtype, sharding=batch_sharding(self.mesh))

    def _microbatch(self, shape: BatchShape) -> dict[str, jax.ShapeDtypeStruct]:
        sharding = batch_sharding(self.mesh)
        return {
            name: jax.ShapeDtypeStruct(size, dtype, sharding=sharding) for name, (size, dtype) in shape.arrays().items()
        }
