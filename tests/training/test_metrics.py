"""What a step's line tells of the machine: rates, utilization, memory, time left."""

import json
from types import SimpleNamespace

import pytest

from fusejax.common.cli import UserError
from fusejax.planning.topology import CHIPS
from fusejax.training import metrics
from fusejax.training.metrics import MEASURED, MetricsLog
from fusejax.training.throughput import Throughput


def device(kind: str, peak: int | None = None, process: int = 0) -> SimpleNamespace:
    """What is asked of a `jax.Device`."""
    stats = None if peak is None else {"peak_bytes_in_use": peak}
    return SimpleNamespace(device_kind=kind, memory_stats=lambda: stats, process_index=process)


def test_utilization_is_of_all_devices_and_memory_of_the_fullest_here():
    devices = [device("TPU v5", 10), device("TPU v5", 30), device("TPU v5", 50, process=1), device("TPU v5", 0, 1)]
    found = Throughput(flops_per_token=CHIPS["v5p"].flops / 1000, devices=devices).measured(tokens=4000, seconds=2)
    assert found == {"tokens_per_second": 2000, "mfu": 0.5, "hbm_peak_bytes": 30}


def test_what_is_not_known_is_left_out():
    assert Throughput(1e9, [device("cpu")]).measured(tokens=10, seconds=2) == {"tokens_per_second": 5}


def test_seconds_left(tmp_path, monkeypatch):
    now = SimpleNamespace(value=100.0)
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now.value)
    throughput = Throughput(1.0, [device("cpu")])
    with MetricsLog(tmp_path, start_step=4, num_steps=10, title="sft", throughput=throughput) as log:
        for step, seconds in ((5, 60.0), (6, 2.0), (7, 4.0)):  # the first compiles
            now.value += seconds
            log.write({"step": step, "loss": 1.0, "tokens": 120})
    first, second, third = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert "seconds_left" not in first
    assert (second["seconds_left"], third["seconds_left"]) == (2.0 * 4, 3.0 * 3)
    assert (first["tokens_per_second"], third["tokens_per_second"]) == (2.0, 30.0)
    assert third.keys() - {"step", "loss", "tokens"} <= MEASURED


def test_a_run_that_diverges_names_what_did(tmp_path):
    with (
        MetricsLog(tmp_path, start_step=0, num_steps=1, title="sft") as log,
        pytest.raises(UserError, match="loss is nan"),
    ):
        log.write({"step": 1, "loss": float("nan"), "tokens": 1})
