"""Whole plans of a small model, compiled for real topologies by the real compiler."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fusejax.planning.compile import Memory
from fusejax.planning.plan import Planner
from fusejax.planning.schedule import Schedule, Traffic
from fusejax.planning.search import choose
from fusejax.planning.topology import parse_topology
from fusejax.planning.workload import workload
from tests.tiny_runs import run_config, settings

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")

SHAPE = {
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
PARAMETERS = 6 * (4 * 256 * 256 + 3 * 256 * 512 + 2 * 256) + 2 * 1024 * 256 + 256


def plan(tmp_path: Path, topology: str, task: str, *arguments: str, **changes: Any) -> subprocess.CompletedProcess:
    """`python -m fusejax.plan` of a small run."""
    (tmp_path / "shape.json").write_text(json.dumps(SHAPE | changes.pop("shape", {})))
    values = settings(tmp_path, tmp_path / "out", task, model=str(tmp_path / "shape.json"), remat="full", **changes)
    values["data"].pop("eval")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "fusejax.plan", "--config", str(tmp_path / "run.yaml"), "--topology", topology]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=600)


@needs_libtpu
@pytest.mark.parametrize(("topology", "devices"), [("v5p-8", 4), ("v4-8", 4), ("tpu7x-8", 8)])
def test_json_of_sft(tmp_path, topology, devices):
    done = plan(
        tmp_path,
        topology,
        "sft",
        "--json",
        *("--examples", "1000", "--tokens-per-example", "40", "batch_size=128"),
        dtype={"compute": "bfloat16"},
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr  # libtpu is quiet
    found = json.loads(done.stdout)
    assert (found["topology"], found["chips"], found["devices"], found["assumed"]) == (topology, 4, devices, [])
    assert list(found["tasks"]) == ["sft"]
    sft = found["tasks"]["sft"]
    hbm = sft["hbm"]
    assert hbm["parameters"] == pytest.approx(PARAMETERS * 4 / devices, rel=0.01)  # float32
    assert hbm["moments"] == pytest.approx(2 * hbm["parameters"], rel=0.01)
    assert hbm["accumulator"] == pytest.approx(hbm["parameters"], rel=0.01)
    assert hbm["state"] == hbm["parameters"] + hbm["moments"] + hbm["accumulator"]
    assert hbm["total"] == hbm["state"] + hbm["temporary"] <= hbm["limit"]
    assert hbm["temporary"] >= hbm["activations"] + hbm["code"] > 0
    assert sft["fits"] is True
    # 128 examples of 40 tokens fill 40 rows of 128; a microbatch has 2 of them on each device. 1000 examples, 2 epochs.
    assert (sft["microbatches"], sft["steps"]) == (math.ceil(40.2 / (2 * devices)), 16)
    assert sft["flops"] > sft["model_flops"] > 6 * 128 * 40 * (PARAMETERS - 1024 * 256)
    peak = 4 * {"v5p-8": 459e12, "v4-8": 275e12, "tpu7x-8": 2307e12}[topology]
    assert sft["mfu"] == pytest.approx(sft["model_flops"] / sft["step_seconds"] / peak)
    assert 0 < sft["mfu"] < 1
    assert sft["total_seconds"] == pytest.approx(16 * sft["step_seconds"])
    assert sft["chip_hours"] == pytest.approx(sft["total_seconds"] * 4 / 3600)
    # Each microbatch, parameters are gathered for both passes, in two bytes each, and gradients scattered; not those of
    # the embedding, whose channels and gradients are exchanged.
    sent = sft["microbatches"] * (1 - 1 / found["devices"]) * 2 * (PARAMETERS - 1024 * 256)
    communication = sft["communication"]
    scatter = "all-to-all" if topology.startswith("v4") else "reduce-scatter"
    assert communication["by_kind"][scatter]["bytes"] == pytest.approx(sent, rel=0.2)
    assert communication["by_kind"]["all-gather"]["bytes"] == pytest.approx(2 * sent, rel=0.2)
    assert communication["bytes"] == sum(kind["bytes"] for kind in communication["by_kind"].values())
    assert 0 < communication["exposed_seconds"] <= communication["seconds"]
    assert communication["exposed_seconds"] < sft["step_seconds"]
    # float32 parameters and two moments, and counters of steps; one host has all four chips.
    assert found["checkpoint"]["bytes"] == pytest.approx(12 * PARAMETERS, abs=32)
    assert (found["checkpoint"]["hosts"], found["checkpoint"]["in_time"]) == (1, True)


@needs_libtpu
def test_table_of_dpo(tmp_path):
    done = plan(tmp_path, "2xv6e-4", "dpo", dtype={"compute": "bfloat16"})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("compiling") == 3  # the reference pass; a microbatch and an update
    lines = {line[:34].strip(): line[34:].split() for line in done.stdout.splitlines()}
    assert lines["HBM per chip, in GB"] == ["reference", "dpo"]
    assert lines["optimizer's moments"][0] == "0.00"  # the pass comes before training
    assert lines["fits"] == ["yes", "yes"]
    # Between the slices, each chip exchanges its fourth of the gradients, in float32.
    assert float(lines["all-reduce, GB"][1]) == pytest.approx(4 * PARAMETERS / 4 / 1e9, rel=0.1)
    assert float(lines["of it not hidden"][1]) <= float(lines["seconds on the links"][1])
    assert lines["limit"] == ["33.55", "33.55"]
    assert "64,128 examples" in done.stdout
    assert "(assumed: examples, tokens_per_example)" in done.stdout


@needs_libtpu
def test_the_table_counts_chips_but_memory_by_device(tmp_path):
    done = plan(tmp_path, "tpu7x-2", "sft", dtype={"compute": "bfloat16"})
    assert done.returncode == 0, done.stderr
    lines = {line[:34].strip(): line[34:].split() for line in done.stdout.splitlines()}
    assert done.stdout.startswith("tpu7x-2: 1 chips, 1x1x1; ")
    assert lines["HBM per half chip, in GB"] == ["sft"]
    assert lines["limit"] == ["101.74"]


@needs_libtpu
def test_what_does_not_fit_is_a_plan_too(tmp_path):
    big = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    done = plan(tmp_path, "v5e-1", "sft", "--json", shape=big)
    assert done.returncode == 0, done.stderr
    sft = json.loads(done.stdout)["tasks"]["sft"]
    assert sft["fits"] is False
    assert sft["hbm"]["total"] > sft["hbm"]["limit"] == int(15.75 * 2**30)
    assert sft["step_seconds"] is sft["mfu"] is sft["chip_hours"] is None
    assert sft["steps"] == 23635


@pytest.mark.parametrize(
    ("topology", "arguments", "message"),
    [
        ("v9-16", (), "error: --topology v9-16: unknown; there are v4-"),
        ("v5p-8", ("mesh.fsdp=3",), "error: mesh: data x fsdp x tensor = 1 x 3 x 1 does not fill 4 devices"),
    ],
)
@needs_libtpu
def test_mistakes_are_one_line(tmp_path, topology, arguments, message):
    done = plan(tmp_path, topology, "sft", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.fixture
def planner(tmp_path):
    """A planner of a run that need not be compiled."""

    def make(layers: int, **shape: Any) -> tuple[Planner, Any]:
        from fusejax.models.decoder.config import DecoderConfig

        config = run_config(tmp_path, tmp_path / "out", batch_size=128)
        model = DecoderConfig.from_hf(SHAPE | {"num_hidden_layers": layers} | shape)
        return Planner(parse_topology("v5p-8"), model, workload(config)), config

    return make


@needs_libtpu
@pytest.mark.parametrize("shape", [{}, {"model_type": "gemma3_text", "sliding_window_pattern": 3}])
def test_programs_do_not_grow_with_depth(planner, shape):
    sizes = []
    for layers in (8, 80):  # two more than whole blocks of three
        made, config = planner(layers, **shape)
        programs = made._programs(config)
        lowered = programs.accumulate.lower(*programs.arguments("accumulate"))
        sizes.append(len(lowered.as_text()))
    # Only digits of sizes differ.
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)


@needs_libtpu
def test_times_add_up(planner, monkeypatch):
    """A step is as many microbatches as it needs, and one update."""
    made, config = planner(6)

    constant = Schedule(459e12, 1.5, {"all-gather": Traffic(10**9, 0.75, 0.5)})
    monkeypatch.setattr("fusejax.planning.plan.schedule.read", lambda *_, **__: constant)
    monkeypatch.setattr("fusejax.planning.plan.compiled", lambda *_: (Memory(10**9, 10**6, fits=True), "text"))
    found = made.plan(config)["sft"]
    microbatches = made.work.microbatches(2 * 4)
    assert found.microbatches == microbatches
    assert found.speed is not None
    assert found.speed.step_seconds == pytest.approx(2.0 * (microbatches + 1))
    assert found.speed.flops == pytest.approx(4 * 459e12 * (microbatches + 1))
    assert found.speed.communication == Traffic(10**9, 0.75, 0.5) * (microbatches + 1)
    assert found.hbm.temporary >= 10**9 + 3 * 10**6  # three programs
    assert found.fits


@needs_libtpu
def test_too_much_for_all_programs_together_does_not_fit(planner, monkeypatch):
    """The compiler looks at one program at a time, and knows of no moments while gradients are computed."""
    made, config = planner(6)
    limit = made.topology.chip.hbm
    monkeypatch.setattr("fusejax.planning.plan.compiled", lambda *_: (Memory(limit - 10**6, 0, fits=True), None))
    hbm, fits = made.hbm(config, "sft")
    assert hbm.total > limit
    assert not fits


@needs_libtpu
def test_a_program_is_compiled_once(planner, monkeypatch):
    """Neither rematerialisation nor the rows of a microbatch are anything to the update."""
    made, config = planner(6)
    calls = []

    def compiled(program, *arguments):
        calls.append(arguments)
        return Memory(10**9, 0, fits=True), None

    monkeypatch.setattr("fusejax.planning.plan.compiled", compiled)
    rows = config.packing.rows_per_device
    made.hbm(choose(config, "full", rows), "sft")
    assert len(calls) == 3  # accumulate, apply, evaluate
    made.hbm(choose(config, "dots", rows), "sft")
    assert len(calls) == 4  # accumulate
    made.hbm(choose(config, "dots", rows + 1), "sft")
    assert len(calls) == 6  # accumulate, evaluate
    made.hbm(choose(config, "full", rows), "sft")
    assert len(calls) == 6
