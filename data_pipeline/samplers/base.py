"""The protocol between the stage `sample` and its backends."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from data_pipeline.config import PipelineConfig, SourceConfig


@dataclass(frozen=True)
class Request:
    """One answer wanted: the rendered prompt, and the seed that alone decides among possible answers."""

    key: str
    prompt: tuple[int, ...]
    """Token ids."""
    seed: int
    max_tokens: int
    """Of the answer: with the prompt's they fit into the model's context."""


@dataclass(frozen=True)
class Answer:
    """One answer. `finish_reason` "length": cut at the limit; "error": none was made, and `error` says why."""

    text: str
    finish_reason: Literal["stop", "length", "error"]
    completion_tokens: int
    error: str | None = None


Answered = list[tuple[Request, Answer]]


class Sampler(Protocol):
    """A source model, ready to answer."""

    engine: str
    """Name and version of the software, for the record."""

    def generate(self, requests: Sequence[Request], done: Container[str]) -> Iterator[Answered]:
        """Answers to the requests whose keys are not in `done`, as they get ready, in lists to be kept as a whole.

        An answer depends on its own request, not on its neighbours. The requests that are done are told as well, so
        that a backend which forms batches can form the same ones again when a run goes on.
        """
        ...

    def close(self) -> None:
        """Gives back what the model takes of memory and devices."""
        ...


def open_sampler(config: PipelineConfig, source: SourceConfig, directory: Path, context: int) -> Sampler:
    """Loads the source model, or finds its server.

    Args:
      config: the whole.
      source: one of its sources.
      directory: where the checkpoint lies.
      context: tokens of prompt and answer together that requests keep to.

    Raises:
      UserError: it cannot be loaded, or its server does not serve it.
    """
    # Each is imported here, since it brings torch, vLLM or an HTTP client.
    backend = config.backend(source)
    if backend == "vllm":
        from data_pipeline.samplers.vllm_sampler import VllmSampler

        return VllmSampler(source, directory, config.sampler.dtype, context)
    if backend == "openai":
        from data_pipeline.samplers.openai_sampler import OpenaiSampler

        return OpenaiSampler(source, context)
    from data_pipeline.samplers.transformers_sampler import TransformersSampler

    return TransformersSampler(config.sampler, source, directory)
