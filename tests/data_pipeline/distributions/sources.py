"""Tiny source models with the tokenizers of several families, SFT examples, and a configuration for both."""

import json
from pathlib import Path
from typing import Any

from data_pipeline.config import PipelineConfig
from fusejax.data.records import SFTExample, write_shards
from tests.data.families import make_tokenizer
from tests.data_pipeline.helpers import make_checkpoint

TEXTS = ["naïve é 😀 is how it is written", "The answer is 42.", "def add(a, b):\n    return a + b\n\nprint(add(1, 2))"]


def save_tokenizer(directory: Path, family: str = "llama3", positions: int = 256) -> Path:
    """A checkpoint without weights, whose tokenizer is one of `tests.data.families`."""
    tokenizer = make_tokenizer(family)
    tokenizer.save_pretrained(directory)
    sizes = {"model_type": "llama", "vocab_size": len(tokenizer), "max_position_embeddings": positions}
    (directory / "config.json").write_text(json.dumps(sizes))
    return directory


def make_source(directory: Path, tokenizer: str = "llama3", family: str = "llama", **overrides: Any) -> Path:
    """A randomly initialised model with such a tokenizer."""
    made = make_tokenizer(tokenizer)
    sizes = {"vocab_size": len(made), "eos_token_id": made.eos_token_id, "pad_token_id": made.eos_token_id}
    make_checkpoint(directory, family=family, **(sizes | overrides))
    made.save_pretrained(directory)
    (directory / "generation_config.json").unlink()  # it names forty ends
    return directory


def example(name: str, answer: str, *, question: str = "How?", system: str | None = None) -> SFTExample:
    start: list[Any] = [{"role": "system", "content": system}] if system else []
    turns = [*start, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return SFTExample(name, "set", "instruction", "someone", turns)


def examples(count: int) -> list[SFTExample]:
    return [example(f"e{n}", f"{TEXTS[n % 3]} {n}", question=f"And {n}?") for n in range(count)]


def write_sft(output: Path, records: list[SFTExample], split: str = "train") -> None:
    write_shards(output / "sft", split, records, kind="sft", num_shards=2, manifest={})


def config_values(output: Path, **sources: Path) -> dict[str, Any]:
    return {
        "output_dir": str(output),
        "prompts": [{"path": "prompts.jsonl", "dataset": "d", "domain": "instruction"}],
        "sources": [{"name": name, "model": str(directory)} for name, directory in sources.items()],
        "sampler": {"dtype": "float32"},
        "write": {"num_shards": 3},
        "distributions": {"top_k": 5},
    }


def config_of(output: Path, **sources: Path) -> PipelineConfig:
    return PipelineConfig.model_validate(config_values(output, **sources))
