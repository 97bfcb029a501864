"""A merge from start to end: models opened and compared, merged tensor by tensor, and written as an export is."""

import functools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from fusejax.common.cli import UserError, note, versions
from fusejax.common.files import absolute, is_remote
from fusejax.common.progress import Progress
from fusejax.config import MergeConfig
from fusejax.merging.card import merge_card
from fusejax.merging.inputs import Inputs
from fusejax.merging.methods import MergeMethod
from fusejax.merging.stack import CHUNK, Chunk
from fusejax.models.huggingface import checkpoint as huggingface
from fusejax.models.huggingface.export_weights import Fetch
from fusejax.models.huggingface.names import Parameter
from fusejax.training.origin import describe

_PIECE = 64 * CHUNK
"""Elements that are handed over to be written at once."""


def merge(config: MergeConfig) -> None:
    """Writes sharded safetensors, `config.json`, a model card, and the pivot's tokenizer and `generation_config.json`.

    Raises:
      UserError: a model cannot be read or does not fit the pivot; `output` is taken, an input, or cannot be written.
    """
    for model in (config.pivot, *config.targets):
        if _same_folder(model, config.output):
            raise UserError(f"output {config.output}: is one of the models to merge; choose another directory")
    huggingface.check_target(config.output)
    inputs = Inputs(config.pivot, config.targets)
    dtype = np.dtype(config.dtype) if config.dtype else inputs.pivot.dtype
    note(f"merging {len(config.targets)} models into {config.output} by {config.method.name}, in {dtype.name}")
    with Progress("merging", len(inputs.names), "tensor") as progress:
        huggingface.save(
            Merged(inputs, config.method, dtype, progress),
            inputs.pivot.config,
            config.output,
            hf_config=huggingface.read_json(inputs.pivot.files / "config.json"),
            dtype=dtype,
            tokenizer_from=inputs.pivot.files,
            generation_config=_generation_config(inputs),
            card=merge_card(
                config.model_dump(mode="json"),
                describe(config.pivot, inputs.pivot.files),
                [describe(target.source, target.files) for target in inputs.all_targets],
                versions=versions(),
            ),
        )


def _generation_config(inputs: Inputs) -> dict[str, Any] | None:
    """The pivot's, with all tokens by which targets end their answers: training may have taught another end than the
    pivot's files name. None: the pivot's file as it is."""
    own = _ends(inputs.pivot.files)
    taught = dict.fromkeys(end for target in inputs.all_targets for end in _ends(target.files) if end not in own)
    if not taught:
        return None
    path = inputs.pivot.files / "generation_config.json"
    return {**(huggingface.read_json(path) if path.exists() else {}), "eos_token_id": [*own, *taught]}


def _ends(files: Path) -> list[int]:
    """The tokens that end an answer, as a model's files name them."""
    named = None
    for name in ("generation_config.json", "config.json"):
        if named is None and (files / name).exists():
            named = huggingface.read_json(files / name).get("eos_token_id")
    return named if isinstance(named, list) else [] if named is None else [named]


def _same_folder(one: str, other: str) -> bool:
    if is_remote(one) or is_remote(other):
        return one.rstrip("/") == other.rstrip("/")
    return epath.Path(one).resolve() == absolute(other).resolve()


class Merged:
    """The merged tensors, each computed when it is fetched: see `export_weights.Source`.

    Of one tensor at a time, all models' bytes are in memory; its merged values only piece by piece.

    Args:
      inputs: the models.
      method: how they are merged.
      dtype: what merged values are rounded to.
      progress: counts tensors.
    """

    on_all_processes = False

    def __init__(self, inputs: Inputs, method: MergeMethod, dtype: np.dtype, progress: Progress):
        self._inputs, self._method, self._dtype, self._progress = inputs, method, dtype, progress
        self._weights = method.weights(inputs)

    def pieces(self, parameter: Parameter, block: int) -> Iterable[Fetch]:
        size = math.prod(parameter.hf_shape)
        chunks = self._chunks(parameter.hf_names[block])
        for start in range(0, size, _PIECE):
            yield functools.partial(self._piece, chunks, min(_PIECE, size - start))
        self._progress.add()

    def _piece(self, chunks: Iterator[np.ndarray], size: int) -> np.ndarray:
        piece, done = np.empty(size, self._dtype), 0
        while done < size:
            chunk = next(chunks)
            piece[done : done + len(chunk)] = chunk
            done += len(chunk)
        return piece

    def _chunks(self, name: str) -> Iterator[np.ndarray]:
        stack = self._inputs.read(name).ordered(self._weights(name))
        merge_chunk = self._method.merge(stack)

        def rounded(chunk: Chunk) -> np.ndarray:
            with np.errstate(over="ignore"):
                values = merge_chunk(chunk).astype(self._dtype)
            if not np.isfinite(values).all():
                raise UserError(f"{name}: a merged weight is too large for {self._dtype.name}; choose another dtype")
            return values

        yield from stack.map(rounded)
