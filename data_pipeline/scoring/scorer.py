"""The protocol between the stage `score` and its scorers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

Verdict = Literal["correct", "wrong", "unknown"]


@dataclass(frozen=True)
class Item:
    """One answer to be judged, with its row of `prompts.parquet` (id, dataset, domain, messages, answer, tests)."""

    prompt: dict[str, Any]
    text: str


@dataclass(frozen=True)
class Score:
    """What a scorer found: a field is None where the scorer does not judge it; the verdict is "unknown" where it could
    not tell."""

    reward: float | None = None
    verdict: Verdict | None = None
    extracted: str | None = None
    """The final answer or the program that was judged."""
    detail: str | None = None
    """Why: a short constant reason, then perhaps `: particulars`."""
    objectives: tuple[float, ...] | None = None
    """The objectives that make up the reward, where a reward model reports them."""


@runtime_checkable
class Scorer(Protocol):
    """Judges answers in batches. A record that cannot be judged gets a score that says so; it stops nothing."""

    fingerprint: str
    """Changes when the same answer could be judged differently."""

    def score(self, items: Sequence[Item]) -> list[Score]:
        """One score per item, in order."""
        ...
