"""Runs that are killed at random moments, resumed, and compared with one that was not: bit for bit.

    python -m benchmarks.kill_and_resume [--runs 20] [--seed 0]

Tiny models on this machine's CPU, SFT and DPO in turn, on one host and on two (one process each), two devices in all.
Each run gets SIGKILL or SIGTERM, on one of its hosts, at a random moment: after a random step, or in one case of five
while it starts. The same command then goes on to the end. Compared are all arrays of the last checkpoint, the
checkpoints that are kept, and every number in `metrics.jsonl` but the time of a step.
"""

import argparse
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from fusejax.distributed.hosts import HOST_LOST, STOPPED
from fusejax.training.checkpoints import complete_steps
from tests.distributed.processes import Processes, on_hosts
from tests.tiny_runs import make_world, train_command
from tests.training.test_resume import final_arrays, logged

CHANGES = {"checkpoint": {"every_steps": 3, "keep": 2}, "epochs": 4}
STEPS = 24
PATIENCE = 400
"""Seconds: a host whose companion died before they met looks for it for 300."""
ROW = "{:>3} {:<4} {:>5} {:<8} {:>6} {:>10} {:<12} {:>8} {:<10}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        print(ROW.format("run", "task", "hosts", "signal", "victim", "after step", "exit", "resumed", "identical"))
        same = 0
        for number in range(1, arguments.runs + 1):
            task, hosts = ("sft", "dpo")[number % 2], 1 + number // 2 % 2
            while (identical := bench.run(number, task, hosts, generator)) is None:
                pass
            same += identical
        print(f"{same} of {arguments.runs} identical")
        raise SystemExit(same < arguments.runs)


class Bench:
    def __init__(self, folder: Path):
        self._folder = folder
        self._world = make_world(folder / "world")
        self._unbroken: dict[tuple[str, int], Path] = {}

    def run(self, number: int, task: str, hosts: int, generator: random.Random) -> bool | None:
        """One run, killed once and resumed; prints its row and returns whether it ended as the unbroken one.

        None if it was at its end before the signal came.
        """
        unbroken = self._unbroken_run(task, hosts)
        number_sent = generator.choice([signal.SIGKILL, signal.SIGTERM])
        victim = generator.randrange(hosts)
        after = generator.randrange(1, STEPS - 3) if generator.random() < 0.8 else 0
        delay = generator.random() * (0.1 if after else 8.0)
        output = self._folder / f"run-{number}"
        with self._start(output, task, hosts) as processes:
            while after and processes.running[0].poll() is None and _lines(output / "metrics.jsonl") < after:
                time.sleep(0.002)
            time.sleep(delay)
            reached = _lines(output / "metrics.jsonl")
            processes.send(victim, number_sent)
            statuses = processes.wait(PATIENCE)
        if set(statuses) == {0}:
            assert reached >= STEPS - 4, "a signal was ignored"
            shutil.rmtree(output)
            return None
        if number_sent == signal.SIGTERM:
            # Before Python has set its handlers, the signal ends the process by itself.
            assert set(statuses) == {STOPPED} or not reached, (statuses, processes.errors())
        else:
            others = statuses[:victim] + statuses[victim + 1 :]
            assert statuses[victim] == -signal.SIGKILL and set(others) <= {HOST_LOST}, statuses
        if -signal.SIGTERM in statuses or HOST_LOST in statuses or statuses[victim] != 0:
            assert not any(status == 0 for status in statuses), statuses
        resumed = max(complete_steps(output), default=0)
        with self._start(output, task, hosts) as processes:
            assert processes.wait() == [0] * hosts, processes.output(0)
        identical = same(output, unbroken, STEPS)
        signals = {-signal.SIGKILL: "KILL", -signal.SIGTERM: "TERM"}
        exits = ",".join(signals.get(status, str(status)) for status in statuses)
        name = signal.Signals(number_sent).name
        print(ROW.format(number, task, hosts, name, victim, reached, exits, resumed, str(identical)), flush=True)
        return identical

    def _unbroken_run(self, task: str, hosts: int) -> Path:
        if (task, hosts) not in self._unbroken:
            output = self._folder / f"unbroken-{task}-{hosts}"
            with self._start(output, task, hosts) as processes:
                assert processes.wait() == [0] * hosts, processes.output(0)
            self._unbroken[task, hosts] = output
        return self._unbroken[task, hosts]

    def _start(self, output: Path, task: str, hosts: int) -> Processes:
        # Compiled once for all: the runs spend their time stepping, not compiling.
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(self._folder / f"cache-{hosts}"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        command = train_command(self._world, output, task, **CHANGES)
        return Processes(on_hosts(command, hosts), output.with_suffix(".output"), devices=2 // hosts, environment=cache)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


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


if __name__ == "__main__":
    main()
