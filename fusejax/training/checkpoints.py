"""A run's checkpoints: Orbax, asynchronous, the last few kept, the best of those found by its evaluation.

Each checkpoint `checkpoints/STEP/` has three items: `params`, `optimizer` (moments and step) and `metrics` (what the
evaluation at that step said; empty without evaluation data). They are apart so that an export reads `params` alone.
A checkpoint appears under its name only when it is complete; what a killed run left half-written is never seen.
"""

import math
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from fusejax.cli import UserError, one_line
from fusejax.training.state import Params, TrainState


def complete_steps(output_dir: str | Path) -> list[int]:
    """The steps of all complete checkpoints, in order; nothing is opened or made."""
    # What Orbax has not completed has a longer name than the step's number.
    found = (Path(output_dir) / "checkpoints").glob("*")
    return sorted(int(path.name) for path in found if path.name.isdecimal())


class Checkpoints:
    """The checkpoints of a run.

    Args:
      output_dir: the run's.
      keep: how many to keep; None opens them for reading only, and leaves alone what the run may be writing.

    Raises:
      UserError: the metrics of a checkpoint are damaged.
    """

    def __init__(self, output_dir: str | Path, *, keep: int | None = None):
        self.directory = Path(output_dir).absolute() / "checkpoints"
        if keep is None:
            options = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0)
        else:
            options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        try:
            self._manager = ocp.CheckpointManager(
                self.directory, options=options, item_names=("params", "optimizer", "metrics")
            )
        except ValueError as error:
            raise UserError(
                f"{self.directory}: the metrics of a checkpoint are damaged ({one_line(error)}); delete that checkpoint"
            ) from error

    def save(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Starts saving and returns once the arrays are copied; a failure is raised by the next call of any method."""
        self._manager.check_for_errors()
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave({"step": state.step, "moments": state.optimizer}),
                metrics=ocp.args.JsonSave(metrics),
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
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

    def metrics(self) -> dict[int, dict[str, Any]]:
        """What the evaluations of the kept checkpoints said, by step."""
        return {step: self._restore(step, metrics=ocp.args.JsonRestore()).metrics for step in self.steps()}

    def _restore(self, step: int, **items: ocp.args.CheckpointArgs) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (OSError, ValueError, KeyError) as error:  # what Orbax and tensorstore raise for damaged files
            raise UserError(
                f"{self.directory}: checkpoint {step} is damaged; delete it to go on from the one before "
                f"({one_line(error)[:200]})"
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
        """Returns when everything is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def close(self) -> None:
        self.wait()
        self._manager.close()
