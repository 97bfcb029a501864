"""A run killed at any moment goes on and ends bit-identical to one that was never killed."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from fusejax.training.checkpoints import Checkpoints
from fusejax.training.metrics import MetricsLog
from tests.tiny_runs import train_command


def final_arrays(output_dir: Path) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint, parameters and moments, as stored."""
    with Checkpoints(output_dir) as checkpoints:
        step = checkpoints.steps()[-1]
    arrays = {}
    for item in ("params", "optimizer"):
        tree = ocp.StandardCheckpointer().restore(output_dir / "checkpoints" / str(step) / item)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return arrays


def logged(output_dir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "step_time"} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_killed_at_any_moment(world, tmp_path, monkeypatch, task):
    # Compiled once for all attempts; and hundreds of steps would take no longer to start than these twelve.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    changes = {"checkpoint": {"every_steps": 2, "keep": 2}, "epochs": 4}
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    subprocess.run(train_command(world, unbroken, task, **changes), check=True)

    command = train_command(world, killed, task, **changes)
    generator = random.Random(task)
    kills = 0
    for patience in (0.0, 0.3, 0.05, 0.6):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        # From the first step on: before it there is nothing to lose, and the start takes most of the time.
        metrics = killed / "metrics.jsonl"
        before = metrics.stat().st_size if metrics.exists() else 0
        while process.poll() is None and (not metrics.exists() or metrics.stat().st_size <= before):
            time.sleep(0.005)
        time.sleep(patience * generator.random())
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 2, "the run ended before it could be killed"
    subprocess.run(command, check=True)

    ours, theirs = final_arrays(killed), final_arrays(unbroken)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)
    assert logged(killed) == logged(unbroken)
    assert [line["step"] for line in logged(killed)] == list(range(1, 25))


def test_a_torn_last_line_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    MetricsLog(tmp_path, start_step=2, num_steps=4, title="sft").close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'


def test_a_half_written_checkpoint_is_not_seen(tmp_path):
    """Orbax renames a checkpoint into place when it is complete; what a crash leaves has another name."""
    (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp-123").mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == []
