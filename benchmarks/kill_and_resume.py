"""Runs that are killed at random moments, resumed, and compared with one that was not: bit for bit.

    python -m benchmarks.kill_and_resume [--tasks sft dpo wrpo fusion] [--runs 20] [--seed 0]

Tiny models on this machine's CPU, on one host and on two (one process each), two devices in all. The tasks take turns:
SFT, DPO, WRPO with its rising share of the source, and explicit fusion of two sidecars, one of another tokenizer and
without every fifth answer. Each run gets SIGKILL or SIGTERM, on one of its hosts, at a random moment: after a random
step, or in one case of five while it starts. The same command then goes on to the end. Compared are all arrays of the
last checkpoint, parameters and moments, the checkpoints that are kept, and every number in `metrics.jsonl` but the time
of a step.
"""

import argparse
import functools
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from benchmarks.resumed_runs import Runs, Start, benchmark, same
from fusejax.distributed.hosts import HOST_LOST, STOPPED
from fusejax.training.checkpoints import complete_steps
from tests.distributed.processes import Processes, on_hosts
from tests.fusion.sidecar_files import byte_level, random_sidecar
from tests.tiny_runs import make_tokenizer, train_command

TASKS = ("sft", "dpo", "wrpo", "fusion")
CHANGES = {"checkpoint": {"every_steps": 3, "keep": 2}, "epochs": 4}
STEPS = 24
PATIENCE = 400
"""Seconds: a host whose companion died before they met looks for it for 300."""
ROW = "{:>3} {:<6} {:>5} {:<8} {:>6} {:>10} {:<12} {:>8} {:<10}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--runs", type=int, default=20)
    with benchmark(parser, PATIENCE) as (arguments, runs, generator):
        bench = Bench(runs)
        print(ROW.format("run", "task", "hosts", "signal", "victim", "after step", "exit", "resumed", "identical"))
        identical = 0
        for number in range(arguments.runs):
            # Hosts change after each round of the tasks, so that every task has both.
            turn, index = divmod(number, len(arguments.tasks))
            while (found := bench.run(number + 1, arguments.tasks[index], 1 + turn % 2, generator)) is None:
                pass
            identical += found
        print(f"{identical} of {arguments.runs} identical")
        raise SystemExit(identical < arguments.runs)


class Bench:
    def __init__(self, runs: Runs):
        self._runs = runs

    def run(self, number: int, task: str, hosts: int, generator: random.Random) -> bool | None:
        """One run, killed once and resumed; prints its row and returns whether it ended as the unbroken one.

        None if it was at its end before the signal came.
        """
        start: Start = functools.partial(self._start, task=task, hosts=hosts)
        unbroken = self._runs.unbroken(f"{task}-{hosts}", start)
        number_sent = generator.choice([signal.SIGKILL, signal.SIGTERM])
        victim = generator.randrange(hosts)
        after = generator.randrange(1, STEPS - 3) if generator.random() < 0.8 else 0
        delay = generator.random() * (0.1 if after else 8.0)
        output = self._runs.folder / f"run-{number}"
        with start(output) as processes:
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
        self._runs.finish(output, start)
        identical = same(output, unbroken, STEPS)
        signals = {-signal.SIGKILL: "KILL", -signal.SIGTERM: "TERM"}
        exits = ",".join(signals.get(status, str(status)) for status in statuses)
        name = signal.Signals(number_sent).name
        print(ROW.format(number, task, hosts, name, victim, reached, exits, resumed, str(identical)), flush=True)
        return identical

    def _start(self, output: Path, task: str, hosts: int) -> Processes:
        changes: dict[str, Any] = dict(CHANGES)
        if task == "fusion":
            changes["fusion"] = {"sidecars": self._sidecars, "top_k": 4, "clm_weight": 0.5, "choose": "avgce"}
        command = train_command(self._runs.world, output, "sft" if task == "fusion" else task, **changes)
        environment = self._runs.environment(f"{hosts}-hosts")
        return Processes(
            on_hosts(command, hosts), output.with_suffix(".output"), devices=2 // hosts, environment=environment
        )

    @functools.cached_property
    def _sidecars(self) -> list[str]:
        folder, data = self._runs.folder, self._runs.world / "sft" / "train"
        other = byte_level(["12", "21", "110"])
        return [
            random_sidecar(folder / "same", "same", make_tokenizer(), data, "<|im_end|>", seed=0),
            random_sidecar(folder / "other", "other", other, data, "<|end|>", seed=1, skip=5),
        ]


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


if __name__ == "__main__":
    main()
