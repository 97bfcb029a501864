"""A Ray cluster of two nodes on this machine: the same tables as without it, though one node is killed midway."""

import functools
import os
import signal
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

from data_pipeline import cluster  # noqa: E402
from data_pipeline.config import ActorsConfig, PipelineConfig, RayConfig  # noqa: E402
from data_pipeline.prompts import stage as prompts  # noqa: E402
from data_pipeline.sampling import stage as sample  # noqa: E402
from data_pipeline.scoring import stage as score  # noqa: E402
from fusejax.common.cli import UserError  # noqa: E402

STORE = 80_000_000
"""Bytes of a node's object store: the least that Ray takes."""


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """Two nodes with a CPU each. The loss of a node is noticed within seconds, where Ray by default takes fifteen."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    arguments = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False, "_system_config": health}
    nodes = Cluster(initialize_head=True, head_node_args=arguments)
    nodes.add_node(num_cpus=1, object_store_memory=STORE)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def on_cluster(values: dict[str, Any], nodes: Cluster, output: Path) -> PipelineConfig:
    actors = {"actors": 2}
    where = {"address": nodes.address, "sample": actors, "score": actors}
    return PipelineConfig.model_validate(values | {"engine": "ray", "ray": where, "output_dir": str(output)})


class Killer(threading.Thread):
    """Kills the node that joined last, once both actors are at work and `begun` says so."""

    def __init__(self, nodes: Cluster, begun: Callable[[], bool]):
        super().__init__(daemon=True)
        self._nodes, self._begun = nodes, begun
        self.killed = False
        self.start()

    def run(self) -> None:
        while not (ray.is_initialized() and not ray.available_resources().get("CPU") and self._begun()):
            time.sleep(0.05)
        (node,) = self._nodes.worker_nodes
        self._nodes.remove_node(node, allow_graceful=False)
        self.killed = True


@pytest.mark.slow
def test_sampling_outlives_a_node(values: dict[str, Any], nodes: Cluster, tmp_path: Path):
    values["samples_per_prompt"] = {"instruction": 20, "math": 10, "code": 5, "chinese": 5}
    values["max_new_tokens"], values["sources"] = 128, values["sources"][:1]
    here = PipelineConfig.model_validate(values)
    there = on_cluster(values, nodes, tmp_path / "there")
    for config in (here, there):
        prompts.run(config)
    sample.run(here)
    journal = tmp_path / "there/samples/.answers/hot/journal.jsonl"
    killer = Killer(nodes, lambda: journal.exists() and journal.stat().st_size > 0)
    sample.run(there)
    assert killer.killed
    expected, found = (tmp_path / run / "samples/hot.parquet" for run in ("out", "there"))
    assert found.read_bytes() == expected.read_bytes()


@pytest.mark.slow
def test_scoring_outlives_a_node(
    values: dict[str, Any], nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Rewards, mathematics in worker processes and programs in the sandbox, all of them within actors."""
    monkeypatch.setattr(score, "CHUNK", 4)  # so that there is much left when the node dies
    values["prompts"] = values["prompts"][:3]
    here = PipelineConfig.model_validate(values)
    there = on_cluster(values, nodes, tmp_path / "there")
    for config in (here, there):
        prompts.run(config)
        answers(tmp_path / Path(config.output_dir))
    score.run(here)
    killer = Killer(nodes, lambda: any((tmp_path / "there/scores/.parts").rglob("*.parquet")))
    score.run(there)
    assert killer.killed
    expected, found = (tmp_path / run / "scores/s.parquet" for run in ("out", "there"))
    assert found.read_bytes() == expected.read_bytes()
    verdicts = pl.read_parquet(found).group_by("verdict").len()
    assert dict(verdicts.iter_rows()).keys() == {"correct", "wrong"}


def answers(output: Path) -> None:
    """`samples/s.parquet` as another program would write it: a right and a wrong answer by turns."""
    rows = []
    for prompt in pl.read_parquet(output / "prompts.parquet").iter_rows(named=True):
        for index in range(120):
            right = int(prompt["answer"] or 0) + index % 2
            number = prompt["messages"][-1]["content"].removeprefix("Write add").removesuffix(".")
            text = {
                "math": f"The answer is \\boxed{{{right}}}.",
                "code": f"```python\ndef add{number}(a, b):\n    return a + b + {index % 2}\n```",
            }.get(prompt["domain"], "x" * index)
            rows.append((prompt["id"], "s", index, text, "stop"))
    (output / "samples").mkdir()
    pl.DataFrame(rows, schema=list(score.NEEDED), orient="row").write_parquet(output / "samples/s.parquet")


def take(nodes: Cluster, make: Callable[[], cluster.Work], blocks: range, pause: float = 0.0) -> list[tuple[int, int]]:
    """What two actors find, where each block has three results (block, 0) to (block, 2)."""
    config = RayConfig(address=nodes.address)
    found: list[tuple[int, int]] = []

    def left() -> list[int]:
        return [block for block in blocks if any((block, index) not in found for index in range(3))]

    for result in cluster.results(config, ActorsConfig(actors=2), "step", make, left):
        found.append(result)
        time.sleep(pause)
        pause = 0.0
    return found


def fragile(log: Path, poison: int | None = None) -> cluster.Work:
    """Dies in block 5 the first time, and in block `poison` every time; once by an exception, once by a signal."""

    def work(block: int) -> Iterator[tuple[int, int]]:
        for index in range(3):
            if index == 1 and block == 5 and not log.exists():
                log.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if index == 0 and block == poison:
                raise ArithmeticError("beyond use")
            yield block, index

    return work


@pytest.mark.slow
def test_a_block_that_kills_its_actor(nodes: Cluster, tmp_path: Path):
    everything = {(block, index) for block in range(12) for index in range(3)}
    assert set(take(nodes, functools.partial(fragile, tmp_path / "log"), range(12))) == everything
    with pytest.raises(
        UserError, match=r"^step: no actor got anywhere; the last one ended with ArithmeticError: beyond use$"
    ):
        take(nodes, functools.partial(fragile, tmp_path / "log", poison=0), range(1))


def refuse(log: Path) -> cluster.Work:
    with log.open("a") as file:
        file.write("x")
    raise UserError("sources: s: no such directory")


@pytest.mark.slow
def test_a_mistake_of_the_users_ends_the_run_at_once(nodes: Cluster, tmp_path: Path):
    with pytest.raises(UserError, match=r"^sources: s: no such directory$"):
        take(nodes, functools.partial(refuse, tmp_path / "log"), range(50))
    assert 1 <= (tmp_path / "log").stat().st_size < 20


def heavy(log: Path) -> cluster.Work:
    def work(block: int) -> Iterator[tuple[int, int, bytes]]:
        for index in range(3):
            with log.open("a") as file:
                file.write("x")
            yield block, index, bytes(2**20)

    return work


@pytest.mark.slow
def test_actors_wait_for_results_to_be_taken(nodes: Cluster, tmp_path: Path):
    """Of 300 MB, no more is made than what the object store may hold."""
    log = tmp_path / "log"
    found = cluster.results(
        RayConfig(address=nodes.address),
        ActorsConfig(),
        "step",
        functools.partial(heavy, log),
        lambda: list(range(100)),
    )
    next(found)
    made = [0]
    while log.stat().st_size > made[-1] and len(made) < 20:
        made.append(log.stat().st_size)
        time.sleep(3)
    assert made[-1] * 2**20 < STORE
    found.close()


def test_a_cluster_that_is_not_there():
    program = "from data_pipeline import cluster, config; c = config.RayConfig(address='nowhere')\n"
    program += "list(cluster.results(c, c.sample, 's', int, list))"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "UserError: ray.address: no cluster to be had at 'nowhere': Invalid address format" in process.stderr


def test_sampling_imports_no_jax():
    program = "import sys; import data_pipeline.sampling.backends.ray_sampler; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
