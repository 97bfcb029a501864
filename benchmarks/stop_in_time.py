"""How soon after SIGTERM a run on four hosts saves, and that it then ends as one that was never stopped: bit for bit.

    python -m benchmarks.stop_in_time [--moments 10] [--seed 0]

A tiny model on this machine's CPU, one process a host. Every microbatch is made to last more than two seconds by a
pause in the forward pass, which is longer on each host than on the one before, as if it were slower. In turn, the hosts
split the parameters (`fsdp`), so that every microbatch keeps them together, or two pairs hold all of them (`data`), and
a pair meets the other only in updates.

After the first update, at a random moment of training or evaluation, one host gets SIGTERM. The table says how many
microbatches later the save began on each host, when Orbax was called with the finished state, by the median time of
that run's own microbatches on that host. (That includes the update, which all but nothing follows from here: it has no
pause.) The same command then goes on to the end. Compared are all arrays of the last checkpoint, the checkpoints that
are kept, and every number in `metrics.jsonl` but the time of a step.
"""

import argparse
import functools
import itertools
import json
import os
import random
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.resumed_runs import Runs, Start, benchmark, same
from fusejax.distributed.hosts import STOPPED
from fusejax.training.checkpoints import complete_steps
from tests.distributed.processes import Processes, on_hosts
from tests.tiny_runs import train_command

HOSTS = 4
STEPS = 4
CHANGES = {
    "checkpoint": {"every_steps": 2, "keep": 2},
    "batch_size": 32,
    "epochs": 4,
    "max_steps": STEPS,
    "packing": {"row_length": 64, "rows_per_device": 1},
}
MESHES = ({"fsdp": 4}, {"data": 2, "fsdp": 2})
PAUSE = 2.0
SLOWER = 0.1
"""Seconds."""
PATIENCE = 1200
ROW = "{:>3} {:<8} {:>6} {:>14} {:>10} {:<24} {:>10}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=10)
    with benchmark(parser, PATIENCE) as (arguments, runs, generator):
        bench = Bench(runs)
        print(ROW.format("run", "mesh", "victim", "update + s", "resumed", "microbatches to the save", "identical"))
        found = [bench.run(number, MESHES[number % 2], generator) for number in range(arguments.moments)]
    worst = max(max(each.begins) for each in found)
    identical = sum(each.identical for each in found)
    print(f"at most {worst:.2f} microbatches; {identical} of {len(found)} identical")
    raise SystemExit(worst > 1 or identical < len(found))


class Found:
    """What one stop came to: microbatches from the signal to the save, for each host; whether the end was the same."""

    def __init__(self, begins: list[float], identical: bool):
        self.begins, self.identical = begins, identical


class Bench:
    def __init__(self, runs: Runs):
        self._runs = runs

    def run(self, number: int, mesh: dict[str, int], generator: random.Random) -> Found:
        """One run, stopped once and resumed; prints its row."""
        start: Start = functools.partial(self._start, mesh=mesh)
        unbroken = self._runs.unbroken("-".join(mesh), start)
        output, victim = self._runs.folder / f"run-{number}", generator.randrange(HOSTS)
        whole = events(unbroken, 0)
        delay = generator.random() * (_last(whole, "pause") - _first(whole, "update"))
        with start(output) as processes:
            while not events(output, victim, "update"):
                assert processes.running[victim].poll() is None, processes.output(victim)
                time.sleep(0.01)
            time.sleep(delay)
            sent = time.monotonic()
            processes.send(victim, signal.SIGTERM)
            statuses = processes.wait(PATIENCE)
        assert statuses == [STOPPED] * HOSTS, [processes.output(i) for i in range(HOSTS)]
        begins = []
        for host in range(HOSTS):
            happened = events(output, host)
            # A save that was under way is not begun again.
            saves = [at for name, at in happened if name == "save" and at >= sent]
            begins.append((saves[0] - sent) / _microbatch(happened) if saves else 0.0)
        resumed = complete_steps(output)[-1]
        self._runs.finish(output, start)
        found = Found(begins, same(output, unbroken, STEPS))
        ratios = " ".join(f"{ratio:.2f}" for ratio in begins)
        name = ",".join(f"{axis}{size}" for axis, size in mesh.items())
        print(ROW.format(number + 1, name, victim, f"{delay:.1f}", resumed, ratios, str(found.identical)), flush=True)
        return found

    def _start(self, output: Path, mesh: dict[str, int]) -> Processes:
        environment = {
            **self._runs.environment("slow"),
            "PYTHONPATH": str(Path(__file__).parents[1]),
            # Threads of XLA: more than there are cores, because one that pauses does nothing else.
            "NPROC": "8",
        }
        command = slowed(train_command(self._runs.world, output, **CHANGES, mesh=mesh), output, PAUSE)
        return Processes(on_hosts(command, HOSTS), output.with_suffix(".output"), environment=environment)


def slowed(command: list[str], output: Path, seconds: float) -> list[str]:
    """`tests.tiny_runs.train_command` with slow microbatches, and with a list of what happens when beside `output`."""
    python, _, _, *options = command
    return [python, "-m", "benchmarks.stop_in_time", str(output.with_suffix(".events")), str(seconds), *options]


def events(output: Path, host: int, only: str | None = None) -> list[tuple[str, float]]:
    path = output.with_suffix(".events") / f"{host}.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    happened = [tuple(json.loads(line)) for line in lines if line.endswith("\n")]
    return [(name, at) for name, at in happened if only in (None, name)]


def _first(happened: list[tuple[str, float]], name: str) -> float:
    return next(at for each, at in happened if each == name)


def _last(happened: list[tuple[str, float]], name: str) -> float:
    return _first(happened[::-1], name)


def _microbatch(happened: list[tuple[str, float]]) -> float:
    """Seconds from the end of a microbatch to the end of the next."""
    ends = [at for name, at in happened if name == "pause"]
    return statistics.median(after - before for before, after in itertools.pairwise(ends))


def host(folder: str, seconds: str, *arguments: str) -> None:
    """`fusejax train` with slow microbatches, and a file of what happens when."""
    import jax
    import orbax.checkpoint as ocp

    from fusejax.common.cli import run
    from fusejax.distributed.agreement import Pace
    from fusejax.train import main as train
    from fusejax.training.network import Network

    index = arguments[arguments.index("--host-index") + 1]
    Path(folder).mkdir(exist_ok=True)
    file = os.open(Path(folder) / f"{index}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def happens(name: str) -> None:
        os.write(file, (json.dumps([name, time.monotonic()]) + "\n").encode())

    def pause(values: Any) -> Any:
        time.sleep(float(seconds) + SLOWER * int(index))
        happens("pause")
        return values

    forward, save, update = Network._forward, ocp.CheckpointManager.save, Pace.start_update

    def slow(self, params, microbatch):
        logprobs, trace = forward(self, params, microbatch)
        target = logprobs.target
        same_shape = jax.ShapeDtypeStruct(target.shape, target.dtype)
        return logprobs._replace(target=jax.pure_callback(pause, same_shape, target)), trace

    def watched_save(self, *args, **options):
        happens("save")
        return save(self, *args, **options)

    def watched_update(self):
        update(self)
        happens("update")

    Network._forward, ocp.CheckpointManager.save, Pace.start_update = slow, watched_save, watched_update
    run(lambda: train(list(arguments)))


if __name__ == "__main__":
    host(*sys.argv[1:]) if "--host-index" in sys.argv else main()
