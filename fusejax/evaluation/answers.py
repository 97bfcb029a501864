"""Greedy answers of a model to prompts, as tables in the data pipeline's format."""

import json
from pathlib import Path
from typing import Any

import polars as pl
from flax import nnx
from transformers import PreTrainedTokenizerBase

from fusejax.cli import UserError
from fusejax.config import MeshConfig
from fusejax.data.chat import load_tokenizer
from fusejax.distributed.mesh import make_mesh
from fusejax.models.generate import generate
from fusejax.training.start import StartingModel

PROMPT_COLUMNS = ("id", "dataset", "domain", "messages", "answer", "tests")


def read_prompts(path: str) -> pl.DataFrame:
    """The prompts to answer: JSON lines or Parquet with the columns of the data pipeline's `prompts.parquet`.

    Raises:
      UserError: no such file, not readable, a column is missing, or there are no rows.
    """
    if not Path(path).is_file():
        raise UserError(f"prompts {path}: no such file")
    try:
        frame = pl.read_parquet(path) if path.endswith(".parquet") else pl.read_ndjson(path, infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"prompts {path}: cannot be read: {' '.join(str(error).split())}") from None
    missing = [column for column in PROMPT_COLUMNS if column not in frame.columns]
    if missing:
        raise UserError(f"prompts {path}: no column {missing[0]!r}; the columns are {', '.join(frame.columns)}")
    if frame.is_empty():
        raise UserError(f"prompts {path}: no prompts")
    return frame.select(PROMPT_COLUMNS)


def answer(source: str, name: str, prompts: pl.DataFrame, *, max_new_tokens: int, batch_size: int, dtype: str):
    """The greedy answers of the model `source`, one row a prompt: the columns that the stage `score` reads.

    Args:
      source: directory or Hub id of a Hugging Face checkpoint, or a run's `output_dir`.
      name: goes into the column `source`.
      prompts: from `read_prompts`.
      max_new_tokens: of an answer; one that is longer has the finish reason `length`.
      batch_size: prompts decoded together.
      dtype: of parameters and computation.

    Raises:
      UserError: the model or its tokenizer cannot be loaded.
    """
    model = StartingModel(source)
    tokenizer = load_tokenizer(model.directory)
    graph, _ = model.graph(compute_dtype=dtype)
    decoder = nnx.merge(graph, model.load(make_mesh(MeshConfig()), dtype=dtype))
    tokens: list[Any] = [
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        for messages in prompts["messages"]
    ]
    answers = generate(
        decoder,
        tokens,
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids(tokenizer, model.directory),
        batch_size=batch_size,
    )
    return pl.DataFrame(
        {
            "prompt_id": prompts["id"],
            "source": name,
            "sample_index": 0,
            "text": tokenizer.batch_decode(answers, skip_special_tokens=True),
            "finish_reason": ["stop" if len(each) < max_new_tokens else "length" for each in answers],
            "prompt_tokens": [len(each) for each in tokens],
            "completion_tokens": [len(each) for each in answers],
        },
        schema_overrides={"sample_index": pl.Int64},
    )


def stop_ids(tokenizer: PreTrainedTokenizerBase, directory: Path) -> set[int]:
    """Every token that ends an answer: the tokenizer's EOS and those that the checkpoint's files name."""
    found = {tokenizer.eos_token_id}
    for name in ("config.json", "generation_config.json"):
        path = directory / name
        named = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
        found |= set(named) if isinstance(named, list) else {named}
    found.discard(None)
    if not found:
        raise UserError(f"{directory}: neither tokenizer nor config.json nor generation_config.json names an EOS token")
    return found
