"""The protocol between the stage and the programs that run a source model."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32


class Asked(NamedTuple):
    """A conversation up to the token that ends its last turn."""

    tokens: Int32[np.ndarray, "length"]
    """Prompt, answer, and the end of the turn."""
    first: int
    """Index of the answer's first token, at least 1: nothing predicts the first token of all."""


class Rows(NamedTuple):
    """Log-probabilities at each of the n tokens of an answer and at the end of its turn, of the full vocabulary."""

    logprobs: Float32[np.ndarray, "n_plus_1"]
    """Of the tokens that are there."""
    top_ids: Int32[np.ndarray, "n_plus_1 K"]
    top_logprobs: Float32[np.ndarray, "n_plus_1 K"]
    """The highest first."""


@runtime_checkable
class Backend(Protocol):
    """A source model, ready."""

    engine: str
    """Name and version of the software, for the record."""

    def rows(self, asked: Sequence[Asked]) -> Iterator[Rows]:
        """Of each conversation, in order."""
        ...

    def close(self) -> None:
        """Releases the model's memory and devices."""
        ...
