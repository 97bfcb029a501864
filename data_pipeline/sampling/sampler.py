"""The protocol between the stage `sample` and its backends."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable


@dataclass(frozen=True)
class Request:
    """One answer to be made: the rendered prompt, and the seed, which alone decides among the possible answers."""

    key: str
    prompt: tuple[int, ...]
    """Token ids."""
    seed: int
    max_tokens: int
    """Most tokens of the answer; with the prompt's they fit into the model's context."""


@dataclass(frozen=True)
class Answer:
    """One answer. `finish_reason` "length": cut at the limit; "error": none was made, and `error` says why."""

    text: str
    finish_reason: Literal["stop", "length", "error"]
    completion_tokens: int
    error: str | None = None


Answered = list[tuple[Request, Answer]]


@runtime_checkable
class Sampler(Protocol):
    """A source model, ready to answer."""

    engine: str
    """Name and version of the software, for the record."""

    def generate(self, requests: Sequence[Request], done: Container[str]) -> Iterator[Answered]:
        """Answers to the requests whose keys are not in `done`, as they get ready, in lists to be kept as a whole.

        An answer depends on its own request, not on its neighbours. Requests that are done are passed as well, so that
        a backend which forms batches can form the same ones again when a run is resumed.
        """
        ...

    def close(self) -> None:
        """Releases the model's memory and devices."""
        ...
