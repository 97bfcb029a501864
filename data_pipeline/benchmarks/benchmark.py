"""What a benchmark is: its items, what a model is asked, how its answers become grades, and grades a score.

A benchmark is a plain class in a file of its own, made of pure functions. Everything else (finding data, asking models
and judges, keeping what they said, intervals, tables) is done for all of them alike by the other files here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import polars as pl
from jaxtyping import Float

from data_pipeline.domains import VerifierLimits
from data_pipeline.sampling.sampler import Sampling

Family = Literal["llama", "qwen", "gemma", "other"]
"""Whose templates and sampling parameters a model is asked with, where a benchmark's publication differs by family."""
Profile = Literal["clean", "fusechat3"]
"""`clean`: the model's chat template, once, by token ids. `fusechat3`: as FuseChat-3.0's scripts did, defects included
(`SLIT-AI/FuseChat-3.0` 5af2bad, FuseEval)."""
Turn = dict[str, str]
"""`role` and `content`."""
Row = dict[str, Any]
"""A row of a data file."""


@dataclass(frozen=True)
class DataFile:
    """A file that a benchmark reads, and where on the Hub it is if nobody brought it."""

    path: str
    """Hub id of a data set."""
    subset: str | tuple[str, ...] | None = None
    """Several are read one after another."""
    split: str = "test"
    revision: str | None = None
    file: str | None = None
    """A file of the repository, where it cannot be loaded as a data set."""
    installed: str = ""
    """`PACKAGE/FILE` of a Python package that brings it along, where that is installed."""
    bring: str = ""
    """What to bring instead, and from where, for the error of who has neither."""


@dataclass(frozen=True)
class Item:
    """One question, task or problem."""

    id: str
    """Unique in the benchmark, the same whichever other items are asked."""
    fields: Row
    unit: str = ""
    """What an interval draws: items with the same unit stand or fall together. Default: the id."""
    stratum: str = ""
    """Where a benchmark takes means of means: the task or category, within which units are drawn. Not where all items
    count alike: what subjects a few of them happen to be of would make the interval too narrow."""
    text: str = ""
    """What training prompts are searched for: the question, without what all items have in common."""


@dataclass(frozen=True)
class Prompt:
    """What a model is asked, either by messages or by text."""

    messages: tuple[Turn, ...] = ()
    """Turns for the model's chat template."""
    text: str = ""
    """In place of messages: the whole prompt, special tokens spelled out, tokenised as it is."""
    prefix: str = ""
    """The beginning of the answer, put into the model's mouth; no part of the answer's text."""
    bos_again: bool = False
    """Prepend the tokenizer's BOS once more, as scripts that tokenise a rendered template do."""


@dataclass(frozen=True)
class Asked:
    """How often and with which parameters an item is asked."""

    sampling: Sampling
    max_tokens: int
    samples: int = 1


@dataclass(frozen=True)
class Answer:
    """What one model said to one item."""

    item: Item
    index: int
    """Which of the item's samples."""
    texts: tuple[str, ...]
    """One per turn."""
    finish_reasons: tuple[str, ...]
    """"stop", "length" or "error", one per turn. An error has no text: the prompt was refused, or a turn before it."""
    tokens: int
    """Of all turns."""


@dataclass(frozen=True)
class Grade:
    """What an answer is worth."""

    score: float | None
    """1 right, 0 wrong; what a judge gave, on the benchmark's scale. None: there is no grade, which is counted and left
    out of every mean."""
    extracted: str | None = None
    """What was read off the answer, or the judge's verdict."""
    detail: str | None = None
    """Why, as `reason: detail`; reasons that start with "unanswered" (nothing to grade was found) and "unknown" (it
    could not be graded) are counted in the results."""
    values: Mapping[str, float | None] = field(default_factory=dict)
    """Further columns of the benchmark's own, for its score: numbers, the same names for all its grades."""


@runtime_checkable
class Benchmark(Protocol):
    """All benchmarks. One may also have further methods: `prepare(rows)`, which returns `score` as a function of
    weights where most of the work does not depend on these; `details(rows, weights)`, further numbers by name;
    `keep(row)`, whether a row of a file too large for memory may be one of its items."""

    name: str
    """In configurations and file names: `gsm8k`."""
    title: str
    """In tables: `GSM8K`."""
    scale: float
    """Of the score's best: 100, or 10."""
    published: str
    """Row of `published.json`; "" if there is none."""
    files: Mapping[str, DataFile]
    """The data files by name; the first holds the items. A user brings them as `NAME.jsonl`, `.csv` or `.parquet`."""
    turns: int

    def items(self, rows: Mapping[str, Sequence[Row]]) -> list[Item]:
        """All items in order, of the rows of its files.

        Raises:
          UserError: a row lacks what the benchmark needs.
        """
        ...

    def asked(self, item: Item, family: Family, profile: Profile) -> Asked: ...

    def prompt(self, item: Item, family: Family, profile: Profile, earlier: tuple[str, ...]) -> Prompt:
        """Of the turn after those that were answered by `earlier`."""
        ...

    def score(self, rows: pl.DataFrame, weights: Float[np.ndarray, "N"]) -> float:
        """The score of grades: columns id, unit, stratum, index, score, and the benchmark's own.

        Args:
          rows: a row per grade; `score` may be null.
          weights: how often each row counts: ones, or what a bootstrap drew.
        """
        ...


@runtime_checkable
class Graded(Benchmark, Protocol):
    """A benchmark whose answers are graded here."""

    def grade(self, answers: Sequence[Answer], profile: Profile, tools: "Tools") -> list[Grade]:
        """A grade per answer, in order."""
        ...


@dataclass(frozen=True)
class Tools:
    """What grading on this machine may use."""

    workers: int | None = None
    """Processes at a time. Default: the machine's cores."""
    allow_unsafe: bool = False
    """Run programs even where no sandbox holds."""
    limits: VerifierLimits = field(default_factory=VerifierLimits)
    """Of a program that is run."""


@dataclass(frozen=True)
class Call:
    """One question to a judge."""

    name: str
    """Which of an answer's calls: "turn 1", "swapped"."""
    messages: tuple[Turn, ...]
    max_tokens: int
    temperature: float = 0.0
    top_logprobs: int = 0
    """Likeliest tokens wanted at the first place; 0 for none."""


@dataclass(frozen=True)
class Reply:
    """What a judge said to a call."""

    text: str
    finish_reason: str
    top: tuple[tuple[str, float], ...] | None = None
    """(token, log-probability) at the first place, likeliest first; None from a server that gives none."""


@runtime_checkable
class Judged(Benchmark, Protocol):
    """A benchmark whose answers a judge grades."""

    def calls(self, answer: Answer) -> list[Call]:
        """What the judge is asked about an answer."""
        ...

    def again(self, call: Call, replies: Sequence[Reply]) -> Call | None:
        """What to ask after these replies to a call did not do; None if the last one does, or it is given up."""
        ...

    def judged(self, answer: Answer, replies: Mapping[str, Sequence[Reply]]) -> Grade:
        """The grade of an answer, of the replies to each of its calls, by name, in the order of asking."""
        ...


def weighted_mean(scores: Float[np.ndarray, "N"], weights: Float[np.ndarray, "N"]) -> float:
    """The mean of the scores that are not NaN; NaN if none counts.

    >>> weighted_mean(np.array([1.0, 0.0, np.nan]), np.array([3.0, 1.0, 5.0]))
    0.75
    """
    there = ~np.isnan(scores)
    total = weights[there].sum()
    return float(scores[there] @ weights[there] / total) if total else float("nan")
