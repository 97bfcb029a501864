"""A checkpoint that a killed process leaves half-written is never restored, and is in nobody's way."""

import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from fusejax.common.cli import UserError
from fusejax.training.checkpoints import Checkpoints, complete_steps
from tests.gcs_server import CloudStorage, _Handler
from tests.storage.save_checkpoints import state


def start(output_dir: epath.Path) -> subprocess.Popen:
    """A process that has saved checkpoint 1 and waits."""
    command = [sys.executable, "-m", "tests.storage.save_checkpoints", str(output_dir)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def go_on(process: subprocess.Popen) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def check_what_is_left(output_dir: epath.Path) -> int:
    """That the newest complete checkpoint is whole, and that the run can go on from it. Returns its step."""
    found = complete_steps(output_dir)
    assert found in ([1], [1, 2])
    with Checkpoints(output_dir) as checkpoints:
        assert checkpoints.steps() == found
    with Checkpoints(output_dir, keep=3) as checkpoints:
        for step in range(found[-1] + 1, 4):
            checkpoints.save(state(step), {"eval_loss": 1.0 / step})
        checkpoints.wait()
        assert checkpoints.steps() == complete_steps(output_dir) == [1, 2, 3]
        for step in (1, 2, 3):
            restored = checkpoints.restore_params(jax.eval_shape(lambda: state(1).params), step)
            for array in jax.tree.leaves(restored):
                np.testing.assert_array_equal(array, step)
    return found[-1]


@pytest.mark.slow
def test_killed_while_saving_to_a_bucket(gcs: CloudStorage):
    """At one moment after another: from a certain request on, the server stops."""
    newest = set()
    for requests in (3, 40, 90, 140, 180, 10_000):
        output_dir = epath.Path(gcs.bucket) / f"run{requests}"
        process = start(output_dir)
        with gcs.faults(1, kinds=("503",), after=requests):
            refused = gcs.served["503"]
            go_on(process)
            while gcs.served["503"] < refused + 3 and complete_steps_seen(gcs, output_dir) < 2:
                time.sleep(0.005)
            process.kill()
            process.wait()
        newest.add(check_what_is_left(output_dir))
    assert newest == {1, 2}, "never killed in the middle, or never at the end"


def complete_steps_seen(gcs: CloudStorage, output_dir: epath.Path) -> int:
    """How many checkpoints are complete, without a request."""
    marks = [name for name in gcs.storage.objects[epath.Path(gcs.bucket).name] if name.startswith(output_dir.name)]
    return sum(name.endswith(("/1/commit_success.txt", "/2/commit_success.txt")) for name in marks)


@pytest.mark.slow
def test_killed_while_saving_to_disk(tmp_path: Path):
    newest = set()
    for index, moment in enumerate((0.0, 0.01, 0.03, 0.1, 2.0)):
        output_dir = epath.Path(tmp_path / str(index))
        process = start(output_dir)
        go_on(process)
        while not any(path.name.startswith("2") for path in (output_dir / "checkpoints").iterdir()):
            time.sleep(0.001)
        time.sleep(moment)
        process.kill()
        process.wait()
        newest.add(check_what_is_left(output_dir))
    assert newest == {1, 2}, "never killed in the middle, or never at the end"


def test_what_is_not_committed_does_not_count(gcs: CloudStorage):
    output_dir = epath.Path(gcs.bucket) / "run"
    assert complete_steps(output_dir) == []
    with Checkpoints(output_dir, keep=3) as checkpoints:
        checkpoints.save(state(1), {})
        checkpoints.save(state(2), {})
    assert complete_steps(output_dir) == [1, 2]
    (output_dir / "checkpoints" / "2" / "commit_success.txt").unlink()
    assert complete_steps(output_dir) == [1]
    assert check_what_is_left(output_dir) == 1


def test_a_bucket_whose_metadata_must_not_be_read(gcs: CloudStorage, monkeypatch: pytest.MonkeyPatch):
    """Orbax reads it, but only when the first checkpoint is deleted."""
    regular = _Handler._precondition

    def precondition(handler: _Handler, method: str) -> int | None:
        return 403 if re.search(r"/b/[^/?]+(\?|$)", handler.path) else regular(handler, method)

    monkeypatch.setattr(_Handler, "_precondition", precondition)
    with pytest.raises(UserError, match=rf"{gcs.bucket}: permission denied .*; checkpoints need storage\.buckets\.get"):
        Checkpoints(f"{gcs.bucket}/run", keep=2)


@pytest.mark.slow
def test_saved_and_restored_under_faults(gcs: CloudStorage):
    output_dir = epath.Path(gcs.bucket) / "run"
    with gcs.faults(0.08, seed=4):
        with Checkpoints(output_dir, keep=3) as checkpoints:
            checkpoints.save(state(1), {"eval_loss": 1.0})
        assert check_what_is_left(output_dir) == 1
