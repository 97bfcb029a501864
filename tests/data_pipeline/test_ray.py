"""A Ray cluster of two nodes on this machine: the same tables as without it, though one node is killed midway."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'fusejax[ray]'")

from ray.cluster_utils import Cluster  # noqa: E402

from data_pipeline import cluster, prompts, sample, score  # noqa: E402
from data_pipeline.config import ActorsConfig, PipelineConfig, RayConfig  # noqa: E402
from fusejax.cli import UserError  # noqa: E402

pytestmark = pytest.mark.slow
STORE = 80_000_000
"""Bytes of a node's object store: the least that Ray takes."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """Two nodes with a CPU each. The loss of a node is noticed within seconds, where Ray by default takes fifteen."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    arguments = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False, "_system_config": health}
    cluster = Cluster(initialize_head=True, head_node_args=arguments)
    cluster.add_node(num_cpus=1, object_store_memory=STORE)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def on_cluster(values: dict[str, Any], nodes: Cluster, output: Path) -> PipelineConfig:
    actors = {"actors": 2}
    where = {"address": nodes.address, "sample": actors, "score": actors}
    return PipelineConfig.model_validate(values | {"engine": "ray", "ray": where, "output_dir": str(output)})


class Killer(threading.Thread):
    """Kills the node that joined last when both actors are at work and `begun` says so; then adds another one."""

    def __init__(self, nodes: Cluster, begun: Callable[[], bool]):
        super().__init__(daemon=True)
        self._nodes, self._begun = nodes, begun
        self.killed = False
        self.start()

    def run(self) -> None:
        while not (ray.is_initialized() and not ray.available_resources().get("CPU") and self._begun()):
            time.sleep(0.05)
        self._nodes.remove_node(sorted(self._nodes.worker_nodes, key=lambda node: node.node_id)[-1], False)
        self.killed = True


def test_sampling_outlives_a_node(values: dict[str, Any], nodes: Cluster, tmp_path: Path):
    """Two models one after another; the second finds one node, and takes it."""
    values["samples_per_prompt"] = {"instruction": 20, "math": 10, "code": 5, "chinese": 5}
    values["max_new_tokens"] = 128
    here = PipelineConfig.model_validate(values)
    there = on_cluster(values, nodes, tmp_path / "there")
    for config in (here, there):
        prompts.run(config)
    sample.run(here)
    journal = tmp_path / "there/samples/.answers/hot/journal.jsonl"
    killer = Killer(nodes, lambda: journal.exists() and journal.stat().st_size > 0)
    sample.run(there)
    assert killer.killed
    for source in ("hot", "cool"):
        expected, found = (tmp_path / run / "samples" / f"{source}.parquet" for run in ("out", "there"))
        assert found.read_bytes() == expected.read_bytes()
