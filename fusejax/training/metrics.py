"""What a run reports: `metrics.jsonl` (one object a step), TensorBoard, and a progress bar with the time left."""

import json
import math
import time
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from fusejax.cli import UserError
from fusejax.files import write_text


class MetricsLog:
    """Writes the steps' metrics; a resumed run goes on as if it had never stopped."""

    def __init__(self, output_dir: str | Path, *, start_step: int, num_steps: int, title: str):
        path = Path(output_dir) / "metrics.jsonl"
        _keep_steps(path, start_step)
        self._file = path.open("a")
        self._board = SummaryWriter(str(Path(output_dir) / "tensorboard"), purge_step=start_step + 1)
        self._progress = tqdm(total=num_steps, initial=start_step, desc=title, unit="step", dynamic_ncols=True)
        self._last_write = time.perf_counter()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def write(self, metrics: dict[str, Any]) -> None:
        """Logs one step: `step` (from 1), `loss`, `tokens`, and numbers of the task's own.

        `step_time`, the seconds since the last step was logged, is added. It includes the step's evaluation and the
        start of its checkpoint, and for the first step the compilation.

        Raises:
          UserError: a metric is not a finite number: the run diverged.
        """
        now = time.perf_counter()
        metrics = {**metrics, "step_time": now - self._last_write}
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
        self._progress.set_postfix_str(_postfix(metrics), refresh=False)
        self._progress.update()

    def close(self) -> None:
        self._file.close()
        self._board.close()
        self._progress.close()


def _keep_steps(path: Path, last_step: int) -> None:
    """Drops what a killed run wrote after its last checkpoint, a torn last line included: those steps run again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            step = json.loads(line)["step"]
        except ValueError:
            break
        if step > last_step:
            break
        kept.append(line + "\n")
    write_text(path, "".join(kept))


def _postfix(metrics: dict[str, Any]) -> str:
    parts = [f"loss {metrics['loss']:.4f}"]
    if "reward_accuracy" in metrics:
        parts.append(f"accuracy {metrics['reward_accuracy']:.2f}")
    parts.append(f"{metrics['tokens'] / metrics['step_time']:,.0f} tokens/s")
    return ", ".join(parts)
