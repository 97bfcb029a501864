"""Tiny source models, and a config that runs the whole pipeline on them."""

from pathlib import Path
from typing import Any

import pytest

from tests.data_pipeline.helpers import CHAT_TEMPLATE, make_checkpoint, write_jsonl


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def gemma_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Alternating sliding windows, shorter than the prompts; a template that refuses the system turn."""
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHAT_TEMPLATE
    )
    directory = tmp_path_factory.mktemp("models") / "gemma2"
    return make_checkpoint(
        directory, family="gemma2", sliding_window=8, query_pre_attn_scalar=16, chat_template=template
    )


@pytest.fixture
def prompt_files(tmp_path: Path) -> dict[str, Path]:
    """Domain -> prompts file."""
    return {
        "instruction": write_jsonl(
            tmp_path / "instruction.jsonl", [{"id": f"i{n}", "prompt": f"say hello {n}"} for n in range(10)]
        ),
        "math": write_jsonl(
            tmp_path / "math.jsonl", [{"id": f"m{n}", "prompt": f"What is {n} + 4?", "answer": n + 4} for n in range(6)]
        ),
        "code": write_jsonl(
            tmp_path / "code.jsonl",
            [{"id": f"c{n}", "prompt": f"Write add{n}.", "tests": [f"assert add{n}(1, 2) == 3"]} for n in range(4)],
        ),
        "chinese": write_jsonl(tmp_path / "chinese.jsonl", [{"id": f"z{n}", "prompt": f"你好 {n}"} for n in range(4)]),
    }


@pytest.fixture
def values(tmp_path: Path, prompt_files: dict[str, Path], checkpoint: Path) -> dict[str, Any]:
    """A config as plain values, to be changed and written."""
    path = "tests.data_pipeline.helpers:reward"
    return {
        "output_dir": str(tmp_path / "out"),
        "prompts": [{"path": str(file), "dataset": f"{d}-set", "domain": d} for d, file in prompt_files.items()],
        "sources": [
            {"name": "hot", "model": str(checkpoint), "temperature": 1.0},
            {"name": "cool", "model": str(checkpoint), "temperature": 0.7, "domains": ["instruction", "math"]},
        ],
        "sampler": {"batch_size": 16, "chunk_size": 24, "dtype": "float32"},
        "samples_per_prompt": {"instruction": 3, "math": 2, "code": 2, "chinese": 1},
        "max_new_tokens": 32,
        "scorers": {
            "instruction": {"reward": path},
            "math": {"reward": path, "correctness": "math_verify"},
            "code": {"reward": path, "correctness": "code", "timeout_seconds": 2},
            "chinese": {"reward": path},
            "workers": 2,
        },
        "write": {"num_shards": 2, "eval_fraction": 0.1},
    }  # fmt: skip
