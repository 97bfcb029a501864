"""Whole runs whose model, data and results are in `gs://`, on a server that fails at random."""

import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from etils import epath

from fusejax.common.files import copy, write_text
from fusejax.training.loop import train
from fusejax.training.metrics import MetricsLog
from tests.gcs_server import CloudStorage
from tests.tiny_runs import run_config, settings
from tests.training.test_resume import final_arrays, logged


@pytest.fixture
def bucket(gcs: CloudStorage, world: Path) -> epath.Path:
    """A bucket with a copy of the world."""
    for path in world.rglob("*"):
        if path.is_file():
            copy(path, epath.Path(gcs.bucket) / "world" / path.relative_to(world))
    return epath.Path(gcs.bucket)


def assert_same_run(ours: epath.Path | Path, theirs: epath.Path | Path) -> None:
    found, wanted = final_arrays(ours), final_arrays(theirs)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert logged(ours) == logged(theirs)


@pytest.mark.slow
def test_a_run_in_a_faulty_bucket_is_bit_identical_to_one_on_disk(gcs, bucket, world, tmp_path):
    train(run_config(world, tmp_path / "sft"))
    train(run_config(world, tmp_path / "dpo", "dpo", model=str(tmp_path / "sft")))
    with gcs.faults(0.03, seed=6):
        train(run_config(bucket / "world", bucket / "sft"))
        train(run_config(bucket / "world", bucket / "dpo", "dpo", model=str(bucket / "sft")))
        train(run_config(bucket / "world", bucket / "dpo", "dpo", model=str(bucket / "sft")))  # complete: does nothing
    for name in ("sft", "dpo"):
        assert_same_run(bucket / name, tmp_path / name)
        wanted = {str(path.relative_to(tmp_path)) for path in (tmp_path / name).rglob("*") if path.is_file()}
        kept = [path for path in wanted if not path.startswith((f"{name}/checkpoints/", f"{name}/tensorboard/"))]
        assert set(kept) <= gcs.objects().keys()
        assert any(path.startswith(f"{name}/tensorboard/events") for path in gcs.objects())


@pytest.mark.slow
def test_killed_and_resumed_in_a_faulty_bucket(gcs, bucket, world, tmp_path):
    changes = {"checkpoint": {"every_steps": 2, "keep": 2}}
    train(run_config(world, tmp_path / "unbroken", **changes))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings(bucket / "world", bucket / "run", **changes)))
    command = [sys.executable, "-m", "fusejax.train", "--config", str(tmp_path / "run.yaml")]
    generator = random.Random(0)
    kills = 0
    with gcs.faults(0.03, seed=7):
        for kept in (0, 2):
            process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            while process.poll() is None and committed(gcs) <= kept:
                time.sleep(0.005)
            time.sleep(generator.random())
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
        subprocess.run(command, check=True)
    assert kills, "the run ended before it could be killed"
    assert_same_run(bucket / "run", tmp_path / "unbroken")


def committed(gcs: CloudStorage) -> int:
    """How many checkpoints have been completed by now, without a request."""
    marks = [re.fullmatch(r"run/checkpoints/(\d+)/commit_success.txt", name) for name in gcs.objects()]
    return max((int(mark[1]) // 2 for mark in marks if mark), default=0)


def test_metrics_are_there_when_a_checkpoint_may_be(gcs: CloudStorage):
    output_dir = epath.Path(gcs.bucket) / "run"
    write_text(output_dir / "metrics.jsonl", '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    with gcs.faults(0.2, seed=1), MetricsLog(output_dir, start_step=1, num_steps=3, title="sft") as log:
        log.write({"step": 2, "loss": 0.5, "tokens": 7})
        log.flush()
        assert [line["loss"] for line in logged(output_dir)] == [2.0, 0.5]
        log.write({"step": 3, "loss": 0.25, "tokens": 7})
    assert [line["loss"] for line in logged(output_dir)] == [2.0, 0.5, 0.25]
    assert sum(name.startswith("run/tensorboard/events") for name in gcs.objects()) == 1


def test_metrics_are_sent_while_a_run_goes_on(gcs: CloudStorage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fusejax.training.mirror.PERIOD", 0.05)
    output_dir = epath.Path(gcs.bucket) / "run"
    with MetricsLog(output_dir, start_step=0, num_steps=3, title="sft") as log:
        log.write({"step": 1, "loss": 2.0, "tokens": 7})
        end = time.monotonic() + 20
        while "run/metrics.jsonl" not in gcs.objects() or not gcs.objects()["run/metrics.jsonl"]:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert logged(output_dir) == [{"step": 1, "loss": 2.0, "tokens": 7}]
