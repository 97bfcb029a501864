"""A run's checkpoints: Orbax saves them asynchronously, the last few are kept, and evaluation picks the best of these.

Each checkpoint `checkpoints/STEP/` has three items: `params`, `optimizer` (moments and step) and `metrics` (what the
evaluation at that step said; empty without evaluation data; the step's line of the log under `unevaluated`, where the
run was stopped before the evaluation was done). They are separate so that an export reads `params` alone.
A checkpoint counts only when it is complete, which Orbax marks on disk by its name and in `gs://` by a file in it; what
a killed run left half-written is never seen.

With several hosts, all of them make the same calls here; the directory must be shared. They wait for each other through
the coordination service, not on their devices, which would first finish what they are at: a save that SIGTERM asks for
begins at once. For the same reason, what all devices hold is divided among them, so that each saves a part, only from
a size on at which that matters: devices cut it.
"""

import contextlib
import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from etils.epath.typing import PathLike

from fusejax.common.cli import UserError, one_line
from fusejax.common.files import absolute, is_remote, write_text
from fusejax.distributed.sharding import VOCABULARY
from fusejax.training.goodput import Clock
from fusejax.training.state import Params, TrainState

_CHUNK_BYTES = 2**26
_MIN_SLICE_BYTES = 2**20
"""An array that several devices hold is divided among them if each part is as large."""
_UNEVALUATED = "unevaluated"
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
      clock: gets the time that saving takes from the caller as `checkpoints`.

    Raises:
      UserError: the metrics of a checkpoint are damaged.
    """

    def __init__(
        self,
        output_dir: PathLike,
        *,
        keep: int | None = None,
        regular: Callable[[int], bool] = lambda step: True,
        clock: Clock | None = None,
    ):
        self.directory, self._clock = absolute(output_dir) / "checkpoints", clock or Clock()
        if is_remote(self.directory):
            from fusejax.common import gcs

            gcs.check_bucket(self.directory)
        self._writes = keep is not None
        _save_small_arrays_whole()
        if keep is None:
            options = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0)
        else:
            self.directory.mkdir(parents=True, exist_ok=True)
            hosts = set(range(jax.process_count()))
            options = ocp.CheckpointManagerOptions(
                create=False,
                multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes=hosts),
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

    def save(
        self, state: TrainState, metrics: dict[str, float], unevaluated: Mapping[str, float] | None = None
    ) -> None:
        """Starts saving and returns once the arrays are copied; later failures are raised by `check` and `wait`.

        Args:
          state: after a step.
          metrics: of its evaluation.
          unevaluated: the step's line of the log, if the evaluation is yet to be done.

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
                    metrics=ocp.args.JsonSave(metrics if unevaluated is None else {_UNEVALUATED: dict(unevaluated)}),
                ),
            )

    def unevaluated(self) -> dict[str, float]:
        """The newest step's line of the log if it was saved without the evaluation that is due; otherwise empty."""
        return self.metrics()[self.steps()[-1]].get(_UNEVALUATED, {}) if self.steps() else {}

    def set_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Completes a checkpoint that was saved as `unevaluated`; to be called on host 0 only."""
        write_text(self.directory / str(step) / "metrics" / "metrics", json.dumps(metrics))

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

    def restore(self, abstract: TrainState, *, vocab_size: int | None = None) -> TrainState:
        """The newest checkpoint, with the shapes, dtypes and shardings of `abstract`.

        Args:
          abstract: what the state is to be like.
          vocab_size: rows of the embedding and of the head without padding, which may have been another where the
            checkpoint was saved. None: shapes are as they were.

        Raises:
          UserError: the checkpoint is damaged, or has other shapes or dtypes.
        """
        step = self.steps()[-1]
        items = {"params": abstract.params, "optimizer": {"step": abstract.step, "moments": abstract.optimizer}}
        for item, tree in items.items():
            self._check_stored(step, item, tree, vocab_size, dtypes=True)
        restored = self._restore(
            step, **{item: ocp.args.StandardRestore(tree, strict=vocab_size is None) for item, tree in items.items()}
        )
        return TrainState(restored.optimizer["step"], restored.params, restored.optimizer["moments"])

    def restore_params(self, abstract: Params, step: int, *, vocab_size: int | None = None) -> Params:
        """The parameters of one checkpoint in the dtypes of `abstract`, without the optimizer's moments being read.

        Arguments and errors are those of `restore`.
        """
        self._check_stored(step, "params", abstract, vocab_size, dtypes=False)
        return self._restore(step, params=ocp.args.StandardRestore(abstract, strict=vocab_size is None)).params

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
        with self._reading(step):
            return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _check_stored(self, step: int, item: str, abstract: Any, vocab_size: int | None, *, dtypes: bool) -> None:
        """Checks what Orbax would cut, pad or convert without a word: arrays that are not stored as `abstract` says.

        Padding of a vocabulary may differ: its rows are zeros, which Orbax adds and cuts off.
        """
        with self._reading(step):
            metadata = ocp.PyTreeCheckpointHandler().metadata(self.directory / str(step) / item)
        stored = _by_name(metadata.tree)
        for name, asked in _by_name(abstract).items():
            found = stored.get(name)
            if found is None:
                continue  # Orbax names what is missing
            shapes = [tuple(x.shape) for x in (found, asked)]
            if vocab_size is not None and re.search(rf"(^|\.)({VOCABULARY})$", name) and shapes[0][0] >= vocab_size:
                shapes = [shape[1:] for shape in shapes]
            if shapes[0] != shapes[1] or (dtypes and found.dtype != asked.dtype):
                raise UserError(
                    f"{self.directory}: checkpoint {step} has {name} as {found.dtype} {tuple(found.shape)}; "
                    f"this run needs {asked.dtype} {tuple(asked.shape)}"
                )

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        try:
            yield
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
            with self._clock.phase("checkpoints"):
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


def _save_small_arrays_whole() -> None:
    """Sets an option of Orbax's own handler of arrays, for which there is no public way; registering another warns."""
    handler: Any = ocp.type_handlers.get_type_handler(jax.Array)
    assert hasattr(handler, "_min_slice_bytes_for_replica_parallel")
    handler._min_slice_bytes_for_replica_parallel = _MIN_SLICE_BYTES


@dataclasses.dataclass(frozen=True)
class _LastRegular:
    """Which checkpoints stay: the newest, and the last `keep` of the regular ones; an Orbax `PreservationPolicy`."""

    keep: int
    regular: Callable[[int], bool]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*[step for step in steps if self.regular(step)][-self.keep :], *steps[-1:]}
        return [step in kept for step in steps]


def _by_name(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by their paths, which are the same where Orbax has made dictionaries of named tuples."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _chunks(params: Params) -> Any:
    """How parameters are stored: each layer apart and in small chunks, so that an export can read them one by one."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if path[0].key == "blocks" else ()),
        params,
    )
