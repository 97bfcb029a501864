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
from data_pipeline.sampling import given_scores
from fusejax.common.cli import UserError


def answers(given: GivenConfig, prompts: pl.DataFrame) -> tuple[pl.DataFrame, Counter[str]]:
    """The columns prompt_id, sample_index and text, ordered by the first two; and how many rows were left out, by
    reason. Answers that come with scores have the columns of `given_scores` too.

    Args:
      given: where they are.
      prompts: those of its domains.

    Raises:
      UserError: no rows, a column that no row has, no row that answers a prompt, or no score in a column of scores.
    """
    of_text = {messages[0]["content"].strip(): name for name, messages in _single_turns(prompts)}
    dropped: Counter[str] = Counter()
    judged = given_scores.columns(given)
    columns = [given.prompt, given.answer, *given.where, *judged.values()]
    unseen = set(columns)
    # Equal answers once: they are copies of a row, not separate answers. Each with the scores of its copies.
    found: dict[tuple[str, str], list[list[Any]]] = {}
    for _, row in reading.rows(given, "given", columns):
        if not isinstance(row, dict):
            dropped["not_an_object"] += 1
            continue
        unseen -= row.keys()
        if any(row.get(column) != value for column, value in given.where.items()):
            dropped["other_row"] += 1
            continue
        prompt, text = row.get(given.prompt), row.get(given.answer)
        name = of_text.get(prompt.strip()) if isinstance(prompt, str) else None
        if name is None:
            dropped["no_such_prompt"] += 1
        elif not isinstance(text, str) or not text.strip():
            dropped["empty"] += 1
        else:
            scores = [row.get(column) for column in judged.values()]
            found.setdefault((name, text.encode(errors="replace").decode()), []).append(scores)
    if unseen:
        raise UserError(f"given: {given.path}: no record has the column {min(unseen)!r}")
    if not found:
        raise UserError(f"given: {given.path}: none of {dropped.total():,} rows answers a prompt: {dict(dropped)}")
    if copies := sum(map(len, found.values())) - len(found):
        dropped["duplicate"] = copies
    frame = pl.DataFrame(list(found), schema={"prompt_id": pl.String, "text": pl.String}, orient="row")
    frame = frame.hstack(given_scores.read(given, list(found.values())))
    index = pl.int_range(pl.len()).over("prompt_id").alias("sample_index")
    order = dict(zip(prompts["id"], range(len(prompts)), strict=True))
    frame = frame.with_columns(index, place=pl.col("prompt_id").replace_strict(order, return_dtype=pl.Int64))
    return frame.sort("place", "sample_index").drop("place"), dropped


def fingerprint(given: GivenConfig) -> str:
    """A hash of the entry, and of its files unless they come from the Hub."""
    return stage_files.fingerprint(given.model_dump(mode="json"), *(epath.Path(file) for file in reading.files(given)))


def _single_turns(prompts: pl.DataFrame) -> list[tuple[str, Any]]:
    return [(name, messages) for name, messages in prompts.select("id", "messages").rows() if len(messages) == 1]
