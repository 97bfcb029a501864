"""A trace of a few steps, for TensorBoard's profiler or XProf: what the devices and the host do when."""

import contextlib
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from etils import epath

from fusejax.common.cli import note
from fusejax.common.files import copy, is_remote
from fusejax.config import ProfileConfig


class Profile:
    """Traces the steps that the configuration names, on every host; does nothing without a configuration.

    The trace is in `output_dir/profile` when the last of its steps is done. A run that is resumed between these steps
    traces the rest of them.
    """

    def __init__(self, config: ProfileConfig | None, output_dir: epath.Path):
        self._steps = range(config.start_step, config.start_step + config.steps) if config else range(0)
        self._target = output_dir / "profile"
        self._open = contextlib.ExitStack()
        self._traces = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """To be called before step `step`, counted from 1, is dispatched."""
        if step not in self._steps or self._traces:
            return
        folder = str(self._target)
        if is_remote(self._target):  # JAX writes traces only to disk
            folder = self._open.enter_context(tempfile.TemporaryDirectory(prefix="fusejax-"))
            self._open.callback(_send, Path(folder), self._target)
        jax.profiler.start_trace(folder)
        self._open.callback(jax.profiler.stop_trace)
        self._traces = True

    def after(self, step: int, results: Any) -> None:
        """To be called after step `step`; waits for its `results` if it is the last step to be traced."""
        if self._traces and step + 1 not in self._steps:
            jax.block_until_ready(results)
            self._stop()

    def _stop(self) -> None:
        if self._traces:
            self._traces = False
            self._open.close()
            note(f"profile: {self._target}")


def _send(folder: Path, target: epath.Path) -> None:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            copy(epath.Path(file), target / file.relative_to(folder))
