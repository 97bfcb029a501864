"""The protocol between the scorer and the programs that run the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Conversation:
    tokens: list[int]
    gate: int
    """Index of the first token of the last gating pattern."""


@dataclass(frozen=True)
class Rewards:
    score: float
    objectives: tuple[float, ...]

    @classmethod
    def of(cls, row: list[float]) -> "Rewards":
        """From a row of what `heads.Heads` returns."""
        return cls(row[0], tuple(row[1:]))


@runtime_checkable
class Backend(Protocol):
    def rewards(self, conversations: Sequence[Conversation]) -> list[Rewards]:
        """One per conversation, in order, whatever batches they were in."""
        ...
