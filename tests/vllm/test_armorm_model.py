"""ArmoRM in vLLM, found through the entry point: against the formula in float64, whatever is cached or cut into chunks.

Bounds of absolute differences are three to five times the largest that were measured: in float32 1.9e-6 of a score and
1.2e-5 of an objective, as in transformers; of the heads alone 1.0e-7; in bfloat16 0.0064 and 0.037, which is this
random backbone's rounding. Scores of the conversations here have a standard deviation of 0.05.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file

from data_pipeline.config import PipelineConfig
from data_pipeline.prompts import stage as prompts
from data_pipeline.scoring.scorer import Item
from tests.data_pipeline.helpers import write_config, write_jsonl
from tests.data_pipeline.scoring.armorm import POSITIONS, QUOTE, heads_reference, items, make_armorm, read, reference

# One thread, and a cache that small machines have room for.
SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
BLOCK = 32
"""Tokens that the cache keeps together; fewer are not possible on CPUs."""
FLOAT32, HEADS, BFLOAT16 = np.array([[8e-6, 5e-5], [5e-7, 5e-7], [0.02, 0.1]])
"""Bounds of scores and of objectives."""


@pytest.fixture(scope="module")
def armorm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_armorm(tmp_path_factory.mktemp("models") / "armorm")


@pytest.fixture(scope="module")
def conversations(armorm: Path) -> list[tuple[list[int], int]]:
    """Tokens and gates; several answers a prompt, so that a cache of prefixes has what to find."""
    found = [read(armorm, item) for item in items()]
    found = [(tokens, gate) for tokens, gate in found if len(tokens) <= POSITIONS]
    assert len(found) > 15 and sum(gate > 2 * BLOCK for _, gate in found) >= 4
    return found


@pytest.fixture(scope="module")
def expected(armorm: Path, conversations: list[tuple[list[int], int]]) -> np.ndarray:
    return np.stack([reference(armorm, tokens, gate) for tokens, gate in conversations])


@pytest.fixture(scope="module")
def found(armorm: Path, conversations: list[tuple[list[int], int]], tmp_path_factory: Any) -> dict[str, Any]:
    """What `armorm_in_vllm` gives in all cases: it starts once, since that takes longest."""
    prompts = [tokens for tokens, _ in conversations]
    asked_twice, _ = max(conversations, key=lambda conversation: conversation[1])
    common = {"model": str(armorm), "dtype": "float32", "block_size": BLOCK}
    cut = {"enable_chunked_prefill": True, "max_num_batched_tokens": 24, "max_num_seqs": 8}

    def call(prompts: list[list[int]], **params: Any) -> dict[str, Any]:
        return {"prompts": prompts, "params": params}

    cases: dict[str, Any] = {
        "cached": {
            "engine": common | {"enable_prefix_caching": True},
            "calls": [
                call(prompts),
                call(prompts[::-1]),
                call([prompts[0], prompts[0][: conversations[0][1]]]),
                call([asked_twice], skip_reading_prefix_cache=False),
            ],
        },
        "uncached": {"engine": common | {"enable_prefix_caching": False}, "calls": [call(prompts)]},
        "cut": {"engine": common | cut | {"enable_prefix_caching": False}, "calls": [call(prompts)] * 2},
        "cut, cached": {"engine": common | cut | {"enable_prefix_caching": True}, "calls": [call(prompts)] * 2},
        "bfloat16": {"engine": common | {"dtype": "bfloat16"}, "heads": True, "calls": [call(prompts)]},
    }
    directory = tmp_path_factory.mktemp("vllm")
    (directory / "asked.json").write_text(json.dumps(cases))
    # Elsewhere than in the project's folder, so that its modules are those that are installed.
    program = [sys.executable, str(Path(__file__).with_name("armorm_in_vllm.py")), "asked.json", "answered.json"]
    environment = {**os.environ, **SETTINGS, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(program, cwd=directory, env=environment, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((directory / "answered.json").read_text())


def check(rows: Any, expected: np.ndarray, bounds: np.ndarray) -> None:
    assert np.shape(rows) == expected.shape, rows
    difference = np.abs(np.array(rows) - expected)
    assert difference[..., 0].max() < bounds[0]
    assert difference[..., 1:].max() < bounds[1]


def test_with_prefix_caching_also_when_asked_again(found: dict[str, Any], expected: np.ndarray):
    assert expected.shape[1] == 20
    first, again, *_ = found["cached"]
    check(first, expected, FLOAT32)
    check(again, expected[::-1], FLOAT32)


def test_a_prompt_without_the_pattern_has_no_score_and_disturbs_none(found: dict[str, Any], expected: np.ndarray):
    good, without = found["cached"][2]
    check(good, expected[0], FLOAT32)
    assert np.isnan(without).all()


def test_a_caller_that_has_the_cache_read_is_told(found: dict[str, Any]):
    """So the cache does hold these prefixes, and it is not luck that the scores above are right."""
    message = found["cached"][3]
    assert isinstance(message, str) and "hidden states of a prompt" in message


def test_without_prefix_caching(found: dict[str, Any], expected: np.ndarray):
    check(found["uncached"][0], expected, FLOAT32)


@pytest.mark.parametrize("case", ["cut", "cut, cached"])
def test_prompts_cut_into_chunks(found: dict[str, Any], expected: np.ndarray, case: str):
    for rows in found[case]:
        check(rows, expected, FLOAT32)


def test_bfloat16_is_of_the_backbone_alone(armorm: Path, found: dict[str, Any], expected: np.ndarray):
    record = found["bfloat16 heads"]
    assert record["types"] == [["model", "torch.bfloat16"], ["pooler", "torch.float32"]]
    compared = 0
    for last, gate, rows in record["calls"]:
        given = np.array([last, gate], np.float32)
        assert np.all(given.view(np.uint32) & 0xFFFF == 0)  # They are numbers of bfloat16.
        for state, looked_at, row in zip(*given, rows, strict=True):
            check(row, heads_reference(armorm, state, looked_at), HEADS)
            compared += 1
    assert compared >= len(expected)
    check(found["bfloat16"][0], expected, BFLOAT16)


def stage_score(directory: Path, armorm: Path, processes: bool, **section: Any) -> subprocess.CompletedProcess[str]:
    """Runs the stages `prompts`, here, and `score`, on `samples` in the folder `out`.

    `processes`: whether vLLM's engine is a process of its own.
    """
    prompts_file = write_jsonl(directory / "prompts.jsonl", [{"id": "p", "prompt": "say"}])
    values = {
        "output_dir": str(directory / "out"),
        "prompts": [{"path": str(prompts_file), "dataset": "d", "domain": "instruction"}],
        "sources": [{"name": "s", "model": "none/needed"}],
        "scorers": {"instruction": {"reward": {"model": str(armorm), "backend": "vllm", "dtype": "float32"} | section}},
    }
    prompts.run(PipelineConfig.model_validate(values))
    path = write_config(directory / "data.yaml", values)
    program = [sys.executable, "-m", "data_pipeline", "score", "--config", str(path)]
    environment = {**os.environ, **SETTINGS, "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(processes))}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(program, cwd=directory, env=environment, text=True, capture_output=True, timeout=300)


@pytest.fixture
def samples(tmp_path: Path) -> list[str]:
    """Answers up to the last position of the model and over it, and empty ones."""
    texts = ["7", "", f"A.{QUOTE}B", " \n", *(";" * length for length in range(70, POSITIONS, 3)), ";" * POSITIONS]
    (tmp_path / "out/samples").mkdir(parents=True)
    frame = {"prompt_id": "p", "source": "s", "sample_index": range(len(texts)), "text": texts, "finish_reason": "stop"}
    pl.DataFrame(frame).write_parquet(tmp_path / "out/samples/s.parquet")
    return texts


def test_the_stage_score(armorm: Path, tmp_path: Path, samples: list[str]):
    """As a user runs it: vLLM's engine is a process of its own, which has to find ArmoRM too; most answers go through
    in chunks."""
    done = stage_score(tmp_path, armorm, processes=True, batch_tokens=40, engine={"enforce_eager": True})
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    # An engine that outlives its owner's end can take the process down with it, all scores written.
    assert "exited unexpectedly" not in done.stdout + done.stderr
    scores = pl.read_parquet(tmp_path / "out/scores/s.parquet")
    assert scores["text"].to_list() == samples
    lost = {"empty_answer": 0, "too_long": 0}
    for row in scores.iter_rows(named=True):
        tokens, gate = read(armorm, Item({"messages": [{"role": "user", "content": "say"}]}, row["text"]))
        if row["text"].strip() and len(tokens) <= POSITIONS:
            check([row["reward"], *row["objectives"]], reference(armorm, tokens, gate), FLOAT32)
            continue
        too_long = f"too_long: {len(tokens)} of {POSITIONS} tokens"
        assert row["detail"] == ("empty_answer" if not row["text"].strip() else too_long)
        assert row["reward"] is None and row["objectives"] is None
        lost[row["detail"].split(":")[0]] += 1
    assert min(lost.values()) > 1 and f"no reward {lost}" in done.stdout


def test_a_checkpoint_with_a_weight_missing_is_one_line(tmp_path: Path, samples: list[str]):
    broken = make_armorm(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["gating.logit_scale"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    done = stage_score(tmp_path, broken, processes=False, engine={"enforce_eager": True})
    assert done.returncode == 2 and not (tmp_path / "out/scores").exists()
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: reward model ") and "vLLM cannot load it" in last
