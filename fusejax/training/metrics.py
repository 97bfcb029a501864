"""What a run reports: `metrics.jsonl` (one object per step), TensorBoard, and progress with the time left."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath
from etils.epath.typing import PathLike
from tensorboardX import SummaryWriter

from fusejax.common.cli import UserError
from fusejax.common.files import is_remote, write_text
from fusejax.common.progress import Progress
from fusejax.training.goodput import Clock
from fusejax.training.mirror import Mirror
from fusejax.training.throughput import Throughput

MEASURED = frozenset({"step_time", "tokens_per_second", "mfu", "hbm_peak_bytes", "goodput", "seconds_left"})
"""Metrics that depend on the machine: they differ between attempts at a run, while all others are the same."""


class MetricsLog:
    """Writes the steps' metrics; a resumed run goes on as if it had never stopped.

    Args:
      start_step: the last step that is already logged.
      title: of the progress.
      throughput: adds its metrics; by default, these are left out.
      clock: adds `goodput`, so far; by default, this is left out.
      texts: name -> Markdown, for TensorBoard.
    """

    def __init__(
        self,
        output_dir: PathLike,
        *,
        start_step: int,
        num_steps: int,
        title: str,
        throughput: Throughput | None = None,
        clock: Clock | None = None,
        texts: Mapping[str, str] | None = None,
    ):
        target = epath.Path(output_dir)
        self._mirror = Mirror(target) if is_remote(target) else None
        folder = self._mirror.folder if self._mirror else Path(target)
        write_text(folder / "metrics.jsonl", _logged(target / "metrics.jsonl", start_step))
        self._file = (folder / "metrics.jsonl").open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)
        for name, text in (texts or {}).items():
            self._board.add_text(name, text, start_step)
        self._throughput, self._clock = throughput, clock
        self._num_steps, self._first = num_steps, start_step + 1
        self._progress = Progress(title, num_steps, "step", done=start_step)
        self._first_write = self._last_write = time.perf_counter()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Ctrl-C may have interrupted the work of TensorBoard's queue, and closing the board would then wait for ever.
        # The steps that it has not written yet are repeated by a resumed run.
        self.close(board=kind is None or not issubclass(kind, KeyboardInterrupt))

    def write(self, metrics: dict[str, Any]) -> None:
        """Logs one step: `step` (from 1), `loss`, `tokens`, and numbers of the task's own.

        Adds the metrics of `MEASURED`. `step_time` is the seconds since the last step was logged, including the step's
        evaluation and the start of its checkpoint, and for the first step the compilation. `seconds_left`, from this
        attempt's second step on, assumes the mean time of its steps after the first. The others are `Throughput`'s.

        Raises:
          UserError: a metric is not a finite number: the run diverged.
        """
        now = time.perf_counter()
        metrics = {**metrics, "step_time": now - self._last_write}
        if self._throughput is not None:
            metrics |= self._throughput.measured(metrics["tokens"], metrics["step_time"])
        if self._clock is not None:
            metrics["goodput"] = self._clock.goodput()
        if metrics["step"] > self._first:
            mean = (now - self._first_write) / (metrics["step"] - self._first)
            metrics["seconds_left"] = mean * (self._num_steps - metrics["step"])
        else:
            self._first_write = now
        self._last_write = now
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise UserError(
                    f"step {metrics['step']}: {name} is {value}: the run diverged; "
                    "lower optimizer.learning_rate, or look for broken examples"
                )
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            if name != "step":
                self._board.add_scalar(name, value, metrics["step"])
        self._progress.add(text=_figures(metrics))

    def flush(self) -> None:
        """Returns when all logged steps are in `output_dir`.

        To be called before a checkpoint is saved: a run resumed from it does not repeat these steps.
        """
        self._board.flush()
        if self._mirror:
            self._mirror.upload()

    def close(self, *, board: bool = True) -> None:
        self._file.close()
        if board:
            self._board.close()
        self._progress.close()
        if self._mirror:
            self._mirror.close()


def _logged(path: epath.Path, last_step: int) -> str:
    """The lines of an earlier attempt up to its last checkpoint; later steps are repeated, so their lines are dropped.

    An incomplete last line is dropped as well.
    """
    kept = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            step = json.loads(line)["step"]
        except ValueError:
            break
        if step > last_step:
            break
        kept.append(line + "\n")
    return "".join(kept)


def _figures(metrics: dict[str, Any]) -> str:
    parts = [f"loss {metrics['loss']:.4f}"]
    if "reward_accuracy" in metrics:
        parts.append(f"accuracy {metrics['reward_accuracy']:.2f}")
    parts.append(f"{metrics['tokens'] / metrics['step_time']:,.0f} tokens/s")
    return ", ".join(parts)
