"""From the loader's rows to arrays on the mesh."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fusejax.common.cli import UserError
from fusejax.config import TrainConfig
from fusejax.data.batch import Microbatch
from fusejax.data.examples import Tokenized
from fusejax.data.loader import StepBatch, check_fits, eval_batches, train_batches
from fusejax.distributed.sharding import batch_sharding


class Batches:
    """The run's batches. Every host makes the rows that its devices hold; together they are global arrays.

    The contents of a global row follow from the packing plan alone, so they are the same on any number of hosts. The
    mesh decides which devices hold the row; if the axis `tensor` spans hosts, several of them make the same rows.

    Args:
      rows_per_microbatch: over all hosts.
      weights: whether examples have weights, as the data's manifests say.

    Raises:
      UserError: an example does not fit a row, or has a weight of which the manifest says nothing.
    """

    def __init__(
        self,
        config: TrainConfig,
        mesh: Mesh,
        data: Mapping[str, Tokenized],
        *,
        rows_per_microbatch: int,
        weights: bool = False,
    ):
        if weights:
            data = {split: tokenized.weighted() for split, tokenized in data.items()}
        elif found := [split for split, tokenized in data.items() if tokenized.weights is not None]:
            raise UserError(f"data.{found[0]}: records have weights, but its manifest does not say so: write it again")
        self._config, self._data, self._rows = config, data, rows_per_microbatch
        self._sharding = batch_sharding(mesh)
        parts = self._sharding.addressable_devices_indices_map((rows_per_microbatch,)).values()
        local_rows = sorted({row for index in parts if index for row in range(rows_per_microbatch)[index[0]]})
        for tokenized in data.values():
            check_fits(tokenized, config.row_length, config.attention_length)
        lengths = {"row_length": config.row_length, "attention_length": config.attention_length}
        self._layout: dict[str, Any] = {**lengths, "rows_per_microbatch": rows_per_microbatch, "local_rows": local_rows}

    def train(self, start_step: int, num_steps: int) -> Iterator[StepBatch]:
        """Steps `start_step` to `num_steps`, as on this host; `put` moves their microbatches to the devices."""
        return train_batches(
            self._data["train"],
            batch_size=self._config.batch_size,
            seed=self._config.seed,
            start_step=start_step,
            num_steps=num_steps,
            **self._layout,
        )

    def once(self, split: str) -> Iterator[dict[str, np.ndarray]]:
        """Microbatches that hold every example of a split exactly once."""
        return eval_batches(self._data[split], **self._layout)

    def put(self, microbatch: Microbatch) -> Microbatch:
        """This host's rows as part of global arrays."""
        with jax.transfer_guard("allow"):  # with several hosts, JAX takes this copy for an implicit one
            return {
                name: jax.make_array_from_process_local_data(self._sharding, array, (self._rows, *array.shape[1:]))
                for name, array in microbatch.items()
            }
