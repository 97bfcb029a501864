"""A run's checkpoints: Orbax saves them asynchronously, the last few are kept, and evaluation picks the best of these.

Each checkpoint `checkpoints/STEP/` has three items: `params`, `optimizer` (moments and step) and `metrics` (what the
evaluation at that step said; empty without evaluation data). They are separate so that an export reads `params` alone.
A checkpoint counts only when it is complete, which Orbax marks on disk by its name and in `gs://` by a file in it; what
a killed run left half-written is never seen.

With several hosts, all of them make the same calls here; the directory must be shared.
"""

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from etils.epath.typing import PathLike

from fusejax.common.cli import UserError, one_line
from fusejax.common.files import absolute, is_remote
from fusejax.training.state import Params, TrainState

_CHUNK_BYTES = 2**26
_DELETED = "deleted"
"""Folder beside the checkpoints with those that are being deleted."""


def complete_steps(output_dir: PathLike) -> list[int]:
    """The steps of all complete checkpoints, in order; nothing is opened or made."""
    found = (epath.Path(output_dir) / "checkpoints").glob("*")
    return sorted(int(path.name) for path in found if path.name.isdecimal() and ocp.utils.is_checkpoint_finalized(path))


class Checkpoints:
    """The checkpoints of a run.

    Args:
      output_dir: the run's.
      keep: how many to keep; None opens them for reading only, and leaves alone what the run may be writing.
      regular: the steps whose checkpoints count in `keep`. One of another step, where a run was stopped, is kept only
        until the next one is complete, so that in the end a stop leaves no trace.

    Raises:
      UserError: the metrics of a checkpoint are damaged.
    """

    def __init__(
        self, output_dir: PathLike, *, keep: int | None = None, regular: Callable[[int], bool] = lambda step: True
    ):
        self.directory = absolute(output_dir) / "checkpoints"
        if is_remote(self.directory):
            from fusejax.common import gcs

            gcs.check_bucket(self.directory)
        self._writes = keep is not None
        if keep is None:
            options = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0)
        else:
            options = ocp.CheckpointManagerOptions(
                preservation_policy=_LastRegular(keep, regular),
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,
                # Renamed before they are deleted: a crash must not leave half a checkpoint under its name. On disk
                # only; in `gs://` what marks a checkpoint as complete is deleted like the rest.
                todelete_subdir=_DELETED,
            )
        try:
            self._manager = ocp.CheckpointManager(
                self.directory, options=options, item_names=("params", "optimizer", "metrics")
            )
        except ValueError as error:
            raise UserError(
                f"{self.directory}: the metrics of a checkpoint are damaged ({one_line(error)}); delete that checkpoint"
            ) from error

    def save(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Starts saving and returns once the arrays are copied; later failures are raised by `check` and `wait`.

        Raises:
          UserError: this checkpoint, or the one before, cannot be saved.
        """
        with self._saving():
            self._manager.check_for_errors()
            self._manager.save(
                int(state.step),
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state.params, save_args=_chunks(state.params)),
                    optimizer=ocp.args.StandardSave({"step": state.step, "moments": state.optimizer}),
                    metrics=ocp.args.JsonSave(metrics),
                ),
            )

    def check(self) -> None:
        """Quickly finds out whether the saving in the background has failed; to be called every step.

        Raises:
          UserError: it has.
        """
        with self._saving():
            self._manager.check_for_errors()
        self._delete()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None:
            self.close()
        elif jax.process_count() == 1:  # with several hosts, others may be gone, and waiting for them would never end
            with contextlib.suppress(UserError):  # the exception at hand came first
                self.close()

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def restore(self, abstract: TrainState) -> TrainState:
        """The newest checkpoint, with the shapes, dtypes and shardings of `abstract`."""
        restored = self._restore(
            self.steps()[-1],
            params=ocp.args.StandardRestore(abstract.params),
            optimizer=ocp.args.StandardRestore({"step": abstract.step, "moments": abstract.optimizer}),
        )
        return TrainState(restored.optimizer["step"], restored.params, restored.optimizer["moments"])

    def restore_params(self, abstract: Params, step: int) -> Params:
        """The parameters of one checkpoint, without the optimizer's moments being read."""
        return self._restore(step, params=ocp.args.StandardRestore(abstract)).params

    def find_step(self, step: int | None) -> int:
        """The step if there is a checkpoint of it; by default the best one's.

        Raises:
          UserError: there is none.
        """
        if step is None:
            return self.best_step()
        if step not in self.steps():
            raise UserError(f"{self.directory}: no checkpoint of step {step}; there are {self.steps()}")
        return step

    def metrics(self) -> dict[int, dict[str, Any]]:
        """What the evaluations of the kept checkpoints said, by step."""
        return {step: self._restore(step, metrics=ocp.args.JsonRestore()).metrics for step in self.steps()}

    def _restore(self, step: int, **items: ocp.args.CheckpointArgs) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (OSError, ValueError, KeyError) as error:  # what Orbax and tensorstore raise for damaged files
            raise UserError(
                f"{self.directory}: checkpoint {step} is damaged; delete it to go on from the one before "
                f"({one_line(error, 200)})"
            ) from error

    def best_step(self) -> int:
        """The kept checkpoint with the lowest evaluation loss; the newest if there was no evaluation.

        Raises:
          UserError: the run has no complete checkpoint.
        """
        if not self.steps():
            raise UserError(f"{self.directory}: no complete checkpoint")
        losses = {step: values.get("eval_loss", math.inf) for step, values in self.metrics().items()}
        return min(losses, key=lambda step: (losses[step], -step))

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
          UserError: saving in the background has failed.
        """
        with self._saving():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        self._delete()

    def close(self) -> None:
        self.wait()
        self._manager.close()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # of many types, from Orbax, tensorstore and the file system
            raise UserError(f"{self.directory}: a checkpoint cannot be saved: {one_line(error, 1000)}") from error

    def _delete(self) -> None:
        """Deletes the checkpoints that Orbax has moved aside, but not their folder: Orbax may be about to use it."""
        if self._writes and jax.process_index() == 0 and not is_remote(self.directory):
            for checkpoint in (self.directory / _DELETED).glob("*"):
                shutil.rmtree(checkpoint, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class _LastRegular:
    """Which checkpoints stay: the newest, and the last `keep` of the regular ones; an Orbax `PreservationPolicy`."""

    keep: int
    regular: Callable[[int], bool]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*[step for step in steps if self.regular(step)][-self.keep :], *steps[-1:]}
        return [step in kept for step in steps]


def _chunks(params: Params) -> Any:
    """How parameters are stored: each layer apart and in small chunks, so that an export can read them one by one."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if path[0].key == "blocks" else ()),
        params,
    )
