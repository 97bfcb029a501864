"""What every trainer of a comparison is given, and what it prints. Standard library alone, for peers import it too.

A case is a folder with `model/`, a Hugging Face checkpoint, and `case.json`: the task, and the batches, one an
optimizer step. All batches are trained on `passes` times over. The first pass compiles and warms up; it is not counted.

The arithmetic is the same for all: mean loss of target tokens (sft) or pairs (dpo), in the case's dtype, AdamW without
weight decay at a constant rate, gradients clipped by their norm. The losses of every step tell that it is.
"""

import json
import time
from importlib.metadata import version
from pathlib import Path

BETA, LEARNING_RATE, MAX_GRAD_NORM = 0.1, 1e-4, 1.0

Example = dict[str, list[int]]
"""Token ids of `prompt`, `chosen` and, for pairs, `rejected`."""


class Case:
    def __init__(self, folder: str):
        self.model = str(Path(folder) / "model")
        described = json.loads((Path(folder) / "case.json").read_text())
        self.task: str = described["task"]
        self.max_length: int = described["max_length"]
        self.dtype: str = described["dtype"]
        self.batches: list[list[Example]] = described["batches"]
        self.steps = self.batches * described["passes"]
        self.answers = ("chosen", "rejected") if self.task == "dpo" else ("chosen",)
        """What is trained on in each example."""


class Report:
    """Seconds and loss of each step, and of the reference pass where it is apart from the steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.reference_seconds = 0.0
        self.note = ""
        """What the figures should be read with."""
        self._start = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call."""
        start, self._start = self._start, time.perf_counter()
        return self._start - start

    def print(self, *packages: str, peak: int | None = None) -> None:
        """One line of JSON; with the packages' versions.

        `peak`: the most bytes held of a GPU's memory. Where there is none, it is this process's memory that counts.
        """
        versions = {name: version(name) for name in packages}
        print(json.dumps({**vars(self), "peak": peak or peak_of_process(), "versions": versions}))


def peak_of_process() -> int:
    """The largest memory that this process has held, in bytes."""
    # Not `getrusage`: there, the process that started this one counts too.
    [peak] = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
    return int(peak) * 1024


def padded(sequences: list[list[int]], *, left: bool = False) -> tuple[list[list[int]], list[list[int]]]:
    """Sequences filled up with 0 to the longest, and a mask of what is not filling."""
    longest = max(map(len, sequences))
    ids, mask = [], []
    for sequence in sequences:
        fill, ones = [0] * (longest - len(sequence)), [1] * len(sequence)
        ids.append(fill + sequence if left else sequence + fill)
        mask.append(fill + ones if left else ones + fill)
    return ids, mask
