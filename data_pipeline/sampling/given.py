"""Answers that come with a data set: rows matched with the prompts, to a table like those of the stage `sample`.

All answers to a prompt are kept, in the order of the rows. Rows that answer no prompt are counted, not kept: in a large
data set they are the majority.
"""

from collections import Counter
from typing import Any

import polars as pl
from etils import epath

from data_pipeline import stage_files
from data_pipeline.config import GivenConfig
from data_pipeline.prompts import reading
from fusejax.common.cli import UserError


def answers(given: GivenConfig, prompts: pl.DataFrame) -> tuple[pl.DataFrame, Counter[str]]:
    """The columns prompt_id, sample_index and text, ordered by them; and how many rows were left out, by reason.

    Args:
      given: where they are.
      prompts: those of its domains.

    Raises:
      UserError: no rows, a column that no row has, or no row that answers a prompt.
    """
    of_text = {messages[0]["content"].strip(): name for name, messages in _single_turns(prompts)}
    dropped: Counter[str] = Counter()
    unseen = {given.prompt, given.answer}
    found: list[tuple[str, str]] = []
    for _, row in reading.rows(given, "given", (given.prompt, given.answer)):
        if not isinstance(row, dict):
            dropped["not_an_object"] += 1
            continue
        unseen -= row.keys()
        prompt, text = row.get(given.prompt), row.get(given.answer)
        name = of_text.get(prompt.strip()) if isinstance(prompt, str) else None
        if name is None:
            dropped["no_such_prompt"] += 1
        elif not isinstance(text, str) or not text.strip():
            dropped["empty"] += 1
        else:
            found.append((name, text.encode(errors="replace").decode()))
    if unseen:
        raise UserError(f"given: {given.path}: no record has the column {min(unseen)!r}")
    if not found:
        raise UserError(f"given: {given.path}: none of {dropped.total():,} rows answers a prompt: {dict(dropped)}")
    frame = pl.DataFrame(found, schema={"prompt_id": pl.String, "text": pl.String}, orient="row")
    # Equal answers once: they are copies of a row, not separate answers.
    frame = frame.unique(maintain_order=True)
    if copies := len(found) - len(frame):
        dropped["duplicate"] = copies
    index = pl.int_range(pl.len()).over("prompt_id").alias("sample_index")
    order = dict(zip(prompts["id"], range(len(prompts)), strict=True))
    frame = frame.with_columns(index, place=pl.col("prompt_id").replace_strict(order, return_dtype=pl.Int64))
    return frame.sort("place", "sample_index").drop("place"), dropped


def fingerprint(given: GivenConfig) -> str:
    """A hash of the entry, and of its files unless they come from the Hub."""
    return stage_files.fingerprint(given.model_dump(mode="json"), *(epath.Path(file) for file in reading.files(given)))


def _single_turns(prompts: pl.DataFrame) -> list[tuple[str, Any]]:
    return [(name, messages) for name, messages in prompts.select("id", "messages").rows() if len(messages) == 1]
