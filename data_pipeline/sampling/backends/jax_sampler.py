"""Sampling with JAX: the trainer's own decoder, for TPUs, where neither vLLM nor transformers runs.

On one device. The only file of the pipeline that knows the decoder, imported where it is asked for: sampling needs no
JAX otherwise.
"""

import bisect
import dataclasses
from collections.abc import Container, Sequence
from pathlib import Path

import jax
from flax import nnx

from data_pipeline.config import SamplerConfig, SourceConfig
from data_pipeline.sampling.backends.batches import batches
from data_pipeline.sampling.backends.stop_texts import before_stop
from data_pipeline.sampling.sampler import Answer, Batches, Request
from fusejax.common.chat_template import load_tokenizer
from fusejax.common.cli import UserError
from fusejax.distributed.mesh import one_device_mesh
from fusejax.models.decoder.generate import generate_batch, power_of_two
from fusejax.models.huggingface.checkpoint import read_json
from fusejax.models.huggingface.generation_config import stop_ids
from fusejax.training.start import StartingModel, check_tokens

DTYPES = ("float32", "bfloat16")
"""Types of weights that the decoder computes with."""


class JaxSampler:
    """A decoder with a checkpoint's weights, on the first device."""

    engine = f"jax {jax.__version__}"

    def __init__(self, config: SamplerConfig, source: SourceConfig, directory: Path):
        """Loads the model.

        Raises:
          UserError: the decoder does not have its architecture or its dtype, or the checkpoint is broken.
        """
        self._name = f"sources: {source.name}"
        self._chunk_size, self._rows = config.chunk_size, power_of_two(config.batch_size)
        try:
            self._tokenizer = load_tokenizer(directory)
            self._stop_ids = stop_ids(directory, self._tokenizer, turn_end=None)
            self._model = StartingModel(str(directory))
            dtype = _dtype(config.dtype, directory)
            graph, _ = self._model.graph(param_dtype=dtype, compute_dtype=dtype)
            self._decoder = nnx.merge(graph, self._model.load(one_device_mesh(), dtype=dtype))
        except UserError as error:
            raise UserError(f"{self._name}: {error}") from error

    def generate(self, requests: Sequence[Request], done: Container[str]) -> Batches:
        """The missing answers, one list per batch; see `sampler.Sampler`.

        Raises:
          UserError: a prompt has tokens that the model does not know.
        """
        highest = max((max(request.prompt) for request in requests), default=0)
        check_tokens(self._model.source, self._model.config.vocab_size, highest)
        for batch in batches(requests, self._chunk_size, self._rows):
            if all(request.key in done for request in batch):
                continue
            # What is done stays in its row, without an answer: the same shapes and rounding as if nothing was.
            limits = [0 if request.key in done else request.max_tokens for request in batch]
            made = generate_batch(
                self._decoder,
                [request.prompt for request in batch],
                limits=limits,
                max_new_tokens=power_of_two(max(request.max_tokens for request in batch)),
                stop_ids=self._stop_ids,
                rows=min(self._rows, power_of_two(len(batch))),
                # Which texts stop is no part of the program.
                sampling=dataclasses.replace(batch[0].sampling, stop=()),
                seeds=[request.seed for request in batch],
            )
            yield [
                (request, self._answer(tokens, request))
                for request, tokens in zip(batch, made, strict=True)
                if request.key not in done
            ]

    def close(self) -> None:
        """Releases the model's memory."""
        del self._decoder

    def _answer(self, tokens: list[int], request: Request) -> Answer:
        stop = request.sampling.stop

        def said(count: int) -> str | None:
            return before_stop(self._text(tokens[:count]), stop)

        before = said(len(tokens))
        if before is not None:
            # The device does not know texts: what it went on to say after them is dropped here, and not counted.
            count = bisect.bisect_left(range(len(tokens) + 1), True, key=lambda count: said(count) is not None)
            return Answer(before, "stop", count)
        ended = len(tokens) < request.max_tokens
        # As elsewhere, the token that ends an answer counts.
        return Answer(self._text(tokens), "stop" if ended else "length", len(tokens) + ended)

    def _text(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


def _dtype(wanted: str, directory: Path) -> str:
    """The type to compute with: as the configuration says, for `auto` as the checkpoint does."""
    config = read_json(directory / "config.json")
    own = config.get("dtype") or config.get("torch_dtype") or "float32"
    if wanted == "auto" and own not in DTYPES:
        raise UserError(f"sampler.dtype: the checkpoint's own is {own}, which the backend jax does not have; name one")
    return str(own) if wanted == "auto" else wanted
