"""The protocol between the stage `sample` and its backends."""

from collections.abc import Container, Generator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from fusejax.common.sampling import Sampling as Sampling


@dataclass(frozen=True)
class Request:
    """One answer to be made: the prompt, and the seed, which alone decides among the possible answers."""

    key: str
    prompt: tuple[int, ...]
    """Token ids of the rendered prompt; none for a server that is sent messages."""
    seed: int
    max_tokens: int
    """Most tokens of the answer; with the prompt's they fit into the model's context, where tokens are known."""
    sampling: Sampling
    messages: tuple[dict[str, str], ...] = ()
    """For a server that is sent messages: the turns, each with `role` and `content`."""


@dataclass(frozen=True)
class Answer:
    """One answer. `finish_reason` "length": cut at the limit; "error": none was made, and `error` says why."""

    text: str
    finish_reason: Literal["stop", "length", "error"]
    completion_tokens: int
    error: str | None = None
    reasoning: str | None = None
    """The thought before the answer, where a server gives it apart from the text."""
    prompt_tokens: int | None = None
    """As a server counted them, where the request has none."""
    believed: bool = True
    """Whether this may be kept. Not so where all that a server sent was malformed: the next run asks again."""


Answered = list[tuple[Request, Answer]]
Batches = Generator[Answered, None, None]
"""Answers as they get ready, until it is closed."""


@runtime_checkable
class Sampler(Protocol):
    """A source model, ready to answer."""

    engine: str
    """Name and version of the software, for the record."""

    def generate(self, requests: Sequence[Request], done: Container[str]) -> Batches:
        """Answers to the requests whose keys are not in `done`, as they get ready, in lists to be kept as a whole.

        An answer depends on its own request, not on its neighbours. Requests that are done are passed as well, so that
        a backend which forms batches can form the same ones again when a run is resumed.
        """
        ...

    def close(self) -> None:
        """Releases the model's memory and devices."""
        ...
