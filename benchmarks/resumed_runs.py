"""What benchmarks of stopped and resumed runs share: tiny runs in a folder of their own, some that never stop."""

import argparse
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fusejax.training.checkpoints import complete_steps
from tests.distributed.processes import Processes
from tests.tiny_runs import make_world
from tests.training.test_resume import final_arrays, logged

Start = Callable[[Path], Processes]
"""Starts the run of an output directory: the same command each time, so it resumes what is there."""


class Runs:
    """A tiny world, and the folder of its runs."""

    def __init__(self, folder: Path, patience: float):
        """`patience`: seconds that a run may take to its end."""
        self.folder = folder
        self.world = make_world(folder / "world")
        self._patience = patience

    def unbroken(self, name: str, start: Start) -> Path:
        """The output of a run that is not stopped; made once for each name."""
        output = self.folder / f"unbroken-{name}"
        if not output.exists():
            self.finish(output, start)
        return output

    def finish(self, output: Path, start: Start) -> None:
        """Runs to the end, from whatever is there."""
        with start(output) as processes:
            assert processes.wait(self._patience) == [0] * len(processes.commands), processes.output(0)

    def environment(self, programs: str) -> dict[str, str]:
        """Compiled once for all runs of the same programs: they spend their time stepping, not compiling."""
        return {
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / f"cache-{programs}"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }


@contextmanager
def benchmark(
    parser: argparse.ArgumentParser, patience: float
) -> Iterator[tuple[argparse.Namespace, Runs, random.Random]]:
    """The command's arguments, with `--seed`; an empty folder of runs; and a generator of that seed."""
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        yield arguments, Runs(Path(folder), patience), random.Random(arguments.seed)


def same(one: Path, other: Path, steps: int) -> bool:
    """Whether two finished runs have the same arrays, checkpoints and log, which has a line for each step."""
    ours, theirs = final_arrays(one), final_arrays(other)
    return (
        ours.keys() == theirs.keys()
        and all(np.array_equal(ours[name], theirs[name]) for name in ours)
        and logged(one) == logged(other)
        and len(logged(one)) == steps
        and complete_steps(one) == complete_steps(other)
    )
