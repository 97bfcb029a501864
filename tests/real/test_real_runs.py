"""A pretrained model through the commands: trained, exported, evaluated, and served by vLLM."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusejax.data.records import SFTExample, write_shards
from tests.real.conftest import Real

ROOT = Path(__file__).parents[2]
VLLM = ROOT / ".venv-vllm" / "bin" / "python"
FACTS = {
    "What is the capital of France?": "Paris",
    "Name three colours of the rainbow.": "red",
    "Translate into German: good morning.": "Guten Morgen",
    "用一句话介绍北京。": "北京",
}
NEW_TOKENS = 32


def check(prompt: dict, text: str) -> str:
    """The verifier of the evaluations below."""
    return "correct" if prompt["answer"].lower() in text.lower() else "wrong"


def command(*words: str, python: str | Path = sys.executable, **environment: str) -> str:
    done = subprocess.run(
        [python, "-m", *words], cwd=ROOT, env=os.environ | environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(real: Real, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run`, one step of SFT, `export`, and `prompts.jsonl`."""
    folder = tmp_path_factory.mktemp("run")
    examples = [
        SFTExample(
            f"{n}", "facts", "facts", "people",
            [{"role": "user", "content": question}, {"role": "assistant", "content": f"It is {answer}."}],
        )
        for n, (question, answer) in enumerate(FACTS.items())
    ]  # fmt: skip
    write_shards(folder / "data", "train", examples, kind="sft", num_shards=1, manifest={})
    config = {
        "task": "sft",
        "model": str(real.directory),
        "data": {"train": str(folder / "data" / "train")},
        "output_dir": str(folder / "run"),
        "max_length": 64,
        "batch_size": 4,
        "optimizer": {"learning_rate": 1e-5},
        "dtype": {"compute": "float32"},
        "packing": {"row_length": 256},
    }
    (folder / "sft.yaml").write_text(yaml.safe_dump(config))
    command("fusejax.train", "--config", str(folder / "sft.yaml"))
    exported = str(folder / "export")
    command("fusejax.export", "--checkpoint", str(folder / "run"), "--output", exported, "--dtype", "float32")
    rows = [
        {
            "id": f"{n}", "dataset": "facts", "domain": "facts", "answer": answer, "tests": None,
            "messages": [{"role": "user", "content": question}],
        }
        for n, (question, answer) in enumerate(FACTS.items())
    ]  # fmt: skip
    pl.DataFrame(rows).write_ndjson(folder / "prompts.jsonl")
    return folder


def greedy(directory: Path) -> dict[str, str]:
    """What transformers answers to each question."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    answers = {}
    for question in FACTS:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        new = model.generate(**asked, max_new_tokens=NEW_TOKENS, do_sample=False)[0, asked["input_ids"].shape[1] :]
        answers[question] = tokenizer.decode(new, skip_special_tokens=True)
    return answers


@pytest.fixture(scope="module")
def exported_answers(run: Path) -> dict[str, str]:
    return greedy(run / "export")


def pipeline(folder: Path, **values: Any) -> str:
    values = {
        "output_dir": str(folder / "pipeline"),
        "prompts": [{"path": str(folder / "prompts.jsonl"), "dataset": "facts", "domain": "facts"}],
        "sources": [{"name": "export", "model": str(folder / "export"), "temperature": 0, "max_model_len": 512}],
        "domains": {"facts": {"samples": 1, "verifier": "tests.real.test_real_runs:check", "rule": "one_source"}},
        "max_new_tokens": NEW_TOKENS,
        **values,
    }
    (folder / "data.yaml").write_text(yaml.safe_dump(values))
    return str(folder / "data.yaml")


def test_evaluation_of_checkpoint_and_run(real: Real, run: Path, exported_answers: dict[str, str]):
    """Answers of the pretrained model, and those of the run, which transformers gives from its export."""
    config = {
        "models": {"base": str(real.directory), "trained": str(run / "run")},
        "prompts": str(run / "prompts.jsonl"),
        "scoring": pipeline(run),
        "output_dir": str(run / "evaluation"),
        "max_new_tokens": NEW_TOKENS,
        "dtype": "float32",
    }
    (run / "evaluate.yaml").write_text(yaml.safe_dump(config))
    command("fusejax.evaluate", "--config", str(run / "evaluate.yaml"))
    results = json.loads((run / "evaluation" / "results.json").read_text())
    for name, expected in (("base", greedy(real.directory)), ("trained", exported_answers)):
        frame = pl.read_parquet(run / "evaluation" / "answers" / "scores" / f"{name}.parquet")
        assert dict(zip(FACTS, frame.sort("prompt_id")["text"], strict=True)) == expected
        right = sum(check({"answer": answer}, expected[question]) == "correct" for question, answer in FACTS.items())
        assert results[name]["facts"] == right / len(FACTS)
    if real.name == "SmolLM2-135M-Instruct":
        assert results["base"]["facts"] >= 0.25  # it knows the capital of France


@pytest.mark.skipif(not VLLM.exists(), reason="no .venv-vllm; make test-real makes it")
def test_vllm_serves_the_export(run: Path, exported_answers: dict[str, str]):
    engine = {"enforce_eager": True, "max_num_seqs": 4, "enable_chunked_prefill": False}
    source = {"name": "export", "model": str(run / "export"), "temperature": 0, "max_model_len": 512, "engine": engine}
    config = pipeline(run, sources=[source], sampler={"backend": "vllm", "dtype": "float32"})
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "PYTHONPATH": str(ROOT)}
    for stage in ("prompts", "sample"):
        command("data_pipeline", stage, "--config", config, python=VLLM, **environment)
    frame = pl.read_parquet(run / "pipeline" / "samples" / "export.parquet")
    assert dict(zip(FACTS, frame.sort("prompt_id")["text"], strict=True)) == exported_answers
