"""The protocol between the stage `sample` and its backends."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from data_pipeline.config import SamplerConfig, SourceConfig


@dataclass(frozen=True)
class Request:
    """One answer wanted: the conversation so far, and the seed that alone decides among possible answers."""

    messages: list[dict[str, str]]
    seed: int


@dataclass(frozen=True)
class Answer:
    """One answer. `finish_reason` "length": cut at the limit; "error": none was made, and `error` says why."""

    text: str
    finish_reason: Literal["stop", "length", "error"]
    prompt_tokens: int
    completion_tokens: int
    error: str | None = None


class Sampler(Protocol):
    """A loaded source model."""

    engine: str
    """Name and version of the software, for the record."""

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer a request, in order. An answer depends on its own request, not on its neighbours."""
        ...


def open_sampler(config: SamplerConfig, source: SourceConfig, max_new_tokens: int) -> Sampler:
    """Loads the source model.

    Raises:
      UserError: it cannot be loaded, or has no chat template.
    """
    # The one backend of now; imported here since it brings torch.
    from data_pipeline.samplers.transformers_sampler import TransformersSampler

    return TransformersSampler(config, source, max_new_tokens)
