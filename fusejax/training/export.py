"""A run's checkpoint as a Hugging Face directory. It streams: no model is built, and no accelerator needed."""

import functools
import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorstore
from etils import epath

from fusejax.common.cli import UserError, one_line, versions
from fusejax.common.files import is_remote
from fusejax.data.chat import load_tokenizer, turn_end
from fusejax.distributed.hosts import Hosts
from fusejax.distributed.sharding import VOCABULARY
from fusejax.models.huggingface import checkpoint as huggingface
from fusejax.models.huggingface.export_weights import Fetch
from fusejax.models.huggingface.generation_config import generation_config, named_ends
from fusejax.models.huggingface.names import Parameter
from fusejax.training.checkpoints import Checkpoints
from fusejax.training.model_card import model_card
from fusejax.training.origin import read_origin
from fusejax.training.start import StartingModel

_PIECE_BYTES = 2**26
"""Approximate size of one read of a parameter that is not stacked."""


def export(run_dir: str, output: str, *, step: int | None, dtype: str, hosts: Hosts | None = None) -> None:
    """Writes sharded safetensors, `config.json`, `generation_config.json`, the tokenizer's files and a model card.

    Args:
      run_dir: the run's `output_dir`, on disk or in a bucket.
      output: the directory to write, on disk or in a bucket; must not exist, or be empty.
      step: the checkpoint; by default the one with the lowest evaluation loss, or without evaluations the newest.
      dtype: of the tensors written, `bfloat16` or `float32`.
      hosts: all of them call this, and the first one writes; by default this host is alone.

    Raises:
      UserError: `run_dir` holds no run or no such checkpoint, or a damaged one; `output` is taken or cannot be written.
    """
    if not epath.Path(run_dir).is_dir():
        raise UserError(f"--checkpoint {run_dir}: no such directory")
    run = StartingModel(run_dir)
    if not run.is_run:
        raise UserError(f"--checkpoint {run_dir}: no run of fusejax.train (it has no checkpoints/ and model/)")
    huggingface.check_target(output)
    with Checkpoints(run_dir) as checkpoints:  # Orbax opens them on all hosts together
        step = checkpoints.find_step(step)
        params = checkpoints.directory / str(step) / "params"
    hosts = hosts or Hosts()
    hosts.note(f"{run_dir}: exporting the checkpoint of step {step}")
    tokenizer = load_tokenizer(run.directory)
    end = turn_end(tokenizer, named_ends(run.directory, tokenizer))
    hosts.lead(
        lambda: huggingface.save(
            # The trained weights are rounded here, and only here.
            StoredParameters(params, np.dtype(dtype)),
            run.config,
            output,
            hf_config=huggingface.read_json(run.directory / "config.json"),
            dtype=dtype,
            tokenizer_from=run.directory,
            generation_config=generation_config(run.directory, tokenizer, end),
            card=model_card(
                read_origin(epath.Path(run_dir)),
                _metrics(epath.Path(run_dir) / "metrics.jsonl", step),
                name=output,
                run=run_dir,
                step=step,
                dtype=dtype,
                versions=versions(),
            ),
        )
    )


def _metrics(log: epath.Path, step: int) -> dict[str, float]:
    """What the run's log says of a step's quality: the evaluation's means if it has them, else those of training."""
    if not log.exists():
        return {}
    entries: dict[str, float] = {}
    with log.open() as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):  # the last line, while it is written
                continue
            if isinstance(entry, dict) and entry.get("step") == step:
                entries = {key: value for key, value in entry.items() if isinstance(value, int | float)}
    shown = [key for key in entries if key.startswith("eval_")] or [
        key for key in entries if key == "loss" or "reward" in key
    ]
    return {key: entries[key] for key in shown}


class StoredParameters:
    """The parameters of a checkpoint, read piece by piece where Orbax has stored them: see `export_weights.Source`.

    Orbax can only restore whole arrays, and a stacked parameter is a large part of the model. But it stores each
    parameter as a plain TensorStore array, named by its path, in one OCDBT database; here that is read directly.

    Args:
      directory: the item `params` of an Orbax checkpoint.
      dtype: what the parameters are rounded to.
    """

    on_all_processes = False

    def __init__(self, directory: epath.Path, dtype: np.dtype):
        self._directory, self._dtype = directory, dtype
        self._open = functools.cache(self._open_array)

    def pieces(self, parameter: Parameter, block: int) -> Iterable[Fetch]:
        if parameter.stacked:
            yield lambda: self._read(parameter, block)
            return
        array = self._open(parameter)
        # Whole chunks: TensorStore decodes a whole chunk for every read of a part of it.
        rows = array.chunk_layout.read_chunk.shape[0]
        rows *= max(1, _PIECE_BYTES * array.shape[0] // (rows * array.dtype.numpy_dtype.itemsize * array.size))
        size = parameter.shape[0]  # without what a mesh may have added to the vocabulary
        for start in range(0, size, rows):
            yield functools.partial(self._read, parameter, slice(start, min(start + rows, size)))

    def _read(self, parameter: Parameter, index: int | slice) -> np.ndarray:
        array = self._open(parameter)
        try:
            return array[index].read().result().astype(self._dtype, copy=False)
        except ValueError as error:  # which is all that TensorStore raises
            raise self._damaged(error) from error

    def _open_array(self, parameter: Parameter) -> Any:
        base = str(self._directory) if is_remote(self._directory) else f"file://{self._directory}"
        database = {"driver": "ocdbt", "base": f"{base}/", "path": f"{parameter.path}/"}
        try:
            array = tensorstore.open({"driver": "auto", "kvstore": database}, read=True, open=True).result()
        except ValueError as error:
            raise self._damaged(error) from error
        if array.shape != parameter.shape and not self._is_padded(array, parameter):
            raise UserError(
                f"{self._directory}: {parameter.path} has shape {array.shape}; config.json asks for {parameter.shape}"
            )
        return array

    def _is_padded(self, array: Any, parameter: Parameter) -> bool:
        """Whether the array is the parameter and rows of zeros, as a mesh adds them to a vocabulary."""
        size, *others = parameter.shape
        if not re.fullmatch(VOCABULARY, parameter.path) or array.shape[0] < size or array.shape[1:] != tuple(others):
            return False
        try:
            return not array[size:].read().result().any()
        except ValueError as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> UserError:
        return UserError(
            f"{self._directory.parent}: the checkpoint is damaged; delete it, or choose another --step "
            f"({one_line(error, 200)})"
        )
