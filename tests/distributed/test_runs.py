"""Training on several hosts: real processes, each with its own part of the devices."""

import json
import random
import signal
import time
from pathlib import Path

import pytest

from benchmarks import stop_in_time
from benchmarks.kill_and_resume import Bench
from benchmarks.stop_in_time import events, slowed
from fusejax.distributed.hosts import STOPPED
from fusejax.training.checkpoints import complete_steps
from fusejax.training.metrics import MEASURED
from tests.distributed.processes import Processes, on_hosts
from tests.tiny_runs import train_command

SHORT = {"max_steps": 6, "checkpoint": {"every_steps": 3, "keep": 2}}


def start(world: Path, output: Path, task: str, count: int, devices: int, **changes) -> Processes:
    command = train_command(world, output, task, **SHORT | changes)
    return Processes(on_hosts(command, count), output.with_suffix(".output"), devices=devices // count)


def curves(output: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    """What one process logs, by task."""
    folder = tmp_path_factory.mktemp("alone")
    found = {}
    for task in ("sft", "dpo"):
        with start(world, folder / task, task, 1, 4) as process:
            assert process.wait() == [0], process.output(0)
        found[task] = curves(folder / task)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "count", "devices", "mesh"),
    [
        ("sft", 4, 4, {"data": 2, "fsdp": 2}),
        ("dpo", 2, 4, {"fsdp": 4}),
        ("dpo", 2, 2, {"fsdp": 1, "tensor": 2}),  # both hosts hold the same rows
    ],
)
def test_the_number_of_hosts_changes_nothing(world, alone, tmp_path, task, count, devices, mesh):
    with start(world, tmp_path / "run", task, count, devices, mesh=mesh) as hosts:
        assert hosts.wait() == [0] * count, [hosts.output(i) for i in range(count)]
    found = curves(tmp_path / "run")
    assert len(found) == 6
    for line, expected in zip(found, alone[task], strict=True):
        assert line == pytest.approx(expected, abs=1e-5, rel=1e-5)
    assert complete_steps(tmp_path / "run") == [3, 6]


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_another_number_of_hosts(world, alone, tmp_path):
    run = tmp_path / "run"
    # Slow enough that the signal comes before the end.
    command = slowed(train_command(world, run, "sft", **SHORT), run, 0.5)
    with Processes(on_hosts(command, 2), run.with_suffix(".output")) as hosts:
        while hosts.running[1].poll() is None and len(events(run, 1, "update")) < 2:
            time.sleep(0.01)
        hosts.send(1, signal.SIGTERM)
        assert hosts.wait() == [STOPPED, STOPPED], [hosts.output(i) for i in range(2)]
        step = complete_steps(run)[-1]
        assert f"stopped by SIGTERM after step {step} of 6" in hosts.errors()[0]
    assert [line["step"] for line in curves(run)] == list(range(1, step + 1))
    with start(world, run, "sft", 1, 1) as process:
        assert process.wait() == [0], process.output(0)
        assert f"going on after step {step} of 6" in process.output(0)
    for line, expected in zip(curves(run), alone["sft"], strict=True):
        assert line == pytest.approx(expected, abs=1e-5, rel=1e-5)
    assert complete_steps(run) == [3, 6]  # where it was stopped is no regular checkpoint


@pytest.mark.slow
def test_killed_and_resumed(tmp_path):
    assert Bench(tmp_path).run(1, "dpo", 2, random.Random(1))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", stop_in_time.MESHES)
def test_a_stop_in_time(tmp_path, mesh):
    """By the run's own microbatches, of two seconds and more."""
    found = stop_in_time.Bench(tmp_path).run(0, mesh, random.Random(0))
    assert found.identical
    assert max(found.begins) <= 1


@pytest.mark.slow
def test_a_mistake_in_the_folder_ends_all_hosts(world, tmp_path):
    (tmp_path / "run").write_text("a file in the way")
    with start(world, tmp_path / "run", "sft", 2, 2) as hosts:
        assert hosts.wait() == [2, 2]
        assert hosts.errors()[0].startswith(f"error: output_dir {tmp_path / 'run'}: ")
        assert hosts.errors()[1] == hosts.errors()[0].replace("error: ", "error: host 0: ")


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_saved_ends_the_run(world, tmp_path):
    """A full disk: files beyond a limit cannot be written, which only those of a checkpoint reach."""
    command = train_command(world, tmp_path / "run", **SHORT)
    limited = ["bash", "-c", 'ulimit -f 64 && exec "$@"', "bash", *command]
    with Processes([limited], tmp_path / "output", environment={"JAX_ENABLE_COMPILATION_CACHE": "0"}) as process:
        assert process.wait() == [2], process.output(0)
        assert "checkpoints: a checkpoint cannot be saved: " in process.errors()[0]
        assert "File too large" in process.errors()[0]
    assert complete_steps(tmp_path / "run") == []
    with start(world, tmp_path / "run", "sft", 1, 1) as process:
        assert process.wait() == [0], process.output(0)
    assert complete_steps(tmp_path / "run") == [3, 6]
