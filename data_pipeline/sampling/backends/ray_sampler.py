"""Sampling on a Ray cluster: actors that each run the source's usual sampler on a share of the requests.

A block is `sampler.chunk_size` consecutive requests out of all, whether some are done or not: so transformers forms the
same batches as without Ray.
"""

import functools
import socket
import time
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path

from data_pipeline import cluster
from data_pipeline.config import PipelineConfig, SourceConfig
from data_pipeline.sampling import checkpoint
from data_pipeline.sampling.backends.opening import open_sampler
from data_pipeline.sampling.sampler import Answered, Batches, Request
from fusejax.common.cli import UserError

SECONDS = 2.0
"""Time between deliveries of answers, which are bundled because Ray takes milliseconds for a result of any size."""

Block = tuple[Sequence[Request], frozenset[str]]
"""Requests, and the keys of those that are done."""


class RaySampler:
    """A source whose model the actors of a cluster load."""

    engine = ""
    """As the actors reported with their last answers."""

    def __init__(self, config: PipelineConfig, source: SourceConfig, directory: Path, context: int):
        self._config, self._source, self._context = config, source, context
        self._revision = checkpoint.revision(directory)
        local = Path(source.model).is_dir()
        # A machine without the Hub's files fetches the same commit that this one has.
        self._place = (str(directory.absolute()), None) if local else (source.model, self._revision)

    def generate(self, requests: Sequence[Request], done: Container[str]) -> Batches:
        """The missing answers, as they get ready; see `sampler.Sampler`."""
        kept = {request.key for request in requests if request.key in done}
        size = self._config.sampler.chunk_size
        chunks = [requests[start : start + size] for start in range(0, len(requests), size)]

        def left() -> list[Block]:
            blocks = [(chunk, kept.intersection(request.key for request in chunk)) for chunk in chunks]
            return [(chunk, frozenset(keys)) for chunk, keys in blocks if len(keys) < len(chunk)]

        source, actors = self._source, self._config.ray.sample
        ranks = source.engine.get("tensor_parallel_size", 1) * source.engine.get("pipeline_parallel_size", 1)
        actors = actors.model_copy(update={"gpus": actors.gpus * ranks})
        make = functools.partial(_work, self._config, source, self._place, self._revision, self._context)
        for engine, answered in cluster.results(self._config.ray, actors, f"sample {source.name}", make, left):
            self.engine = engine
            fresh = [(request, answer) for request, answer in answered if request.key not in kept]
            kept.update(request.key for request, _ in fresh)
            if fresh:
                yield fresh

    def close(self) -> None:
        """Does nothing: actors end with the work."""


def _work(
    config: PipelineConfig, source: SourceConfig, place: tuple[str, str | None], revision: str, context: int
) -> Callable[[Block], Iterator[tuple[str, Answered]]]:
    """Loads the model on the machine that calls it; returns a function from a block to its answers and engine."""
    directory = checkpoint.locate(*place)
    if checkpoint.revision(directory) != revision:
        problem = f"{directory} on {socket.gethostname()} is another checkpoint than on the machine that drives"
        raise UserError(f"sources: {source.name}: {problem}; share the directory, or name a Hub id")
    sampler = open_sampler(config, source, directory, context)

    def work(block: Block) -> Iterator[tuple[str, Answered]]:
        requests, done = block
        ready: Answered = []
        told = time.monotonic()
        for answered in sampler.generate(requests, done):
            ready += answered
            if time.monotonic() - told >= SECONDS:
                yield sampler.engine, ready
                ready, told = [], time.monotonic()
        if ready:
            yield sampler.engine, ready

    return work
