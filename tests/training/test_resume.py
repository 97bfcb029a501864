"""A run killed at any moment goes on and ends bit-identical to one that was never killed."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from fusejax.common.cli import UserError
from fusejax.distributed.hosts import STOPPED
from fusejax.training.checkpoints import Checkpoints, complete_steps
from fusejax.training.metrics import MEASURED, MetricsLog
from fusejax.training.state import TrainState
from tests.tiny_runs import train_command


def final_arrays(output_dir: Path) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint, parameters and moments, as stored."""
    with Checkpoints(output_dir) as checkpoints:
        step = checkpoints.steps()[-1]
    arrays = {}
    checkpointer = ocp.PyTreeCheckpointer()
    for item in ("params", "optimizer"):
        path = output_dir / "checkpoints" / str(step) / item
        # As NumPy's, for there may be other devices here than in the run.
        stored = checkpointer.metadata(path).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
        tree = checkpointer.restore(path, restore_args=as_numpy)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return arrays


def logged(output_dir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sft", "dpo", "wrpo"])
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
    # SIGTERM comes with a warning: the run saves where it is, which must leave no trace in the end.
    for patience, number in (
        (0.0, signal.SIGKILL),
        (0.1, signal.SIGTERM),
        (0.05, signal.SIGTERM),
        (0.6, signal.SIGKILL),
    ):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        # From the first step on: before it there is nothing to lose, and the start takes most of the time.
        metrics = killed / "metrics.jsonl"
        before = metrics.stat().st_size if metrics.exists() else 0
        while process.poll() is None and (not metrics.exists() or metrics.stat().st_size <= before):
            time.sleep(0.005)
        time.sleep(patience * generator.random())
        process.send_signal(number)
        process.communicate()
        assert process.returncode in (0, STOPPED if number == signal.SIGTERM else -number)
        kills += process.returncode != 0
    assert kills >= 2, "the run ended before it could be killed"
    subprocess.run(command, check=True)

    ours, theirs = final_arrays(killed), final_arrays(unbroken)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)
    assert logged(killed) == logged(unbroken)
    assert [line["step"] for line in logged(killed)] == list(range(1, 25))
    assert complete_steps(killed) == complete_steps(unbroken)


def test_a_torn_last_line_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    MetricsLog(tmp_path, start_step=2, num_steps=4, title="sft").close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'


def test_a_half_written_checkpoint_is_not_seen(tmp_path):
    """Orbax renames a checkpoint into place when it is complete; what a crash leaves has another name."""
    (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp-123").mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == []


def test_nothing_is_converted_or_cut_in_silence(tmp_path):
    """But rows of zeros beyond a vocabulary, of which every mesh has its own number."""

    def state(rows: int, dtype=jnp.float32, width: int = 3) -> TrainState:
        table = jnp.pad(jnp.arange(5 * width, dtype=dtype).reshape(5, width), ((0, rows - 5), (0, 0)))
        params = {"embedder": {"embedding": table}, "final_norm": {"scale": jnp.ones(width, dtype)}}
        return TrainState(jnp.int32(1), params, {"mu": params})

    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state(6), {})
        checkpoints.wait()
        for rows in (5, 6, 8):
            found = checkpoints.restore(jax.eval_shape(lambda rows=rows: state(rows)), vocab_size=5)
            jax.tree.map(np.testing.assert_array_equal, found, state(rows))
        for changed, message in (
            (state(6, jnp.bfloat16), r"has embedder\.embedding as float32 \(6, 3\); this run needs bfloat16 \(6, 3\)"),
            (state(6, width=2), r"has embedder\.embedding as float32 \(6, 3\); this run needs float32 \(6, 2\)"),
        ):
            with pytest.raises(UserError, match=message):
                checkpoints.restore(jax.eval_shape(lambda changed=changed: changed), vocab_size=5)
        with pytest.raises(UserError, match="this run needs float32"):
            checkpoints.restore(jax.eval_shape(lambda: state(5)))
        with pytest.raises(UserError, match="this run needs float32"):
            checkpoints.restore(jax.eval_shape(lambda: state(8)), vocab_size=7)
        half = checkpoints.restore_params(jax.eval_shape(lambda: state(5, jnp.bfloat16).params), 1, vocab_size=5)
        jax.tree.map(np.testing.assert_array_equal, half, state(5, jnp.bfloat16).params)


def test_where_a_run_was_stopped_is_kept_until_the_next_checkpoint(tmp_path):
    def state(step: int) -> TrainState:
        return TrainState(jnp.int32(step), {"w": jnp.full(3, step, jnp.float32)}, {"w": jnp.zeros(3)})

    def regular(step: int) -> bool:
        return step % 4 == 0

    kept = []
    with Checkpoints(tmp_path, keep=2, regular=regular) as checkpoints:
        for step in (4, 8, 10, 12, 16):
            checkpoints.save(state(step), {})
            checkpoints.wait()
            kept.append(checkpoints.steps())
    assert kept == [[4], [4, 8], [4, 8, 10], [8, 12], [12, 16]]
    assert not any((tmp_path / "checkpoints" / "deleted").iterdir())


def test_a_crash_while_an_old_checkpoint_is_deleted(tmp_path):
    """What is to be deleted has lost its name before: no half of it can be taken for a checkpoint."""
    half = tmp_path / "checkpoints" / "deleted" / "4" / "params"
    half.mkdir(parents=True)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.steps() == []
        checkpoints.check()
    assert not half.exists()
