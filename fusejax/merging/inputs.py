"""The pivot and its targets: opened, compared, and read tensor by tensor."""

import concurrent.futures
import dataclasses
from collections.abc import Sequence

import numpy as np
from etils import epath

from fusejax.common.cli import UserError
from fusejax.common.small_files import shown
from fusejax.merging.stack import Stack
from fusejax.merging.vocabulary import check_same_vocabulary
from fusejax.models.decoder.config import DecoderConfig
from fusejax.models.huggingface import checkpoint as huggingface
from fusejax.models.huggingface.checkpoint_files import check_files
from fusejax.models.huggingface.names import parameters
from fusejax.models.huggingface.safetensors_file import DTYPES, Tensor, read_range

_READERS = 8
_TASK_BYTES = 2**24
"""What one reader reads at a time; of a remote file, with one request."""


class Input:
    """A model to be merged.

    Args:
      role: "pivot" or "target", for errors.
      source: a directory or Hub id of a Hugging Face checkpoint.

    Raises:
      UserError: it is none, its architecture is not supported, or a file of it is broken.
    """

    def __init__(self, role: str, source: str):
        path = epath.Path(source)
        if (path / "checkpoints").is_dir() and (path / "model").is_dir():
            raise UserError(f"{role} {source}: the folder of a training run; merge what `fusejax export` makes of it")
        self.role, self.source = role, source
        found = huggingface.find(source)
        self.files = found.files
        """A directory on disk with `config.json` and the tokenizer."""
        self.config = huggingface.read_config(self.files)
        check_files(self.files)
        self.tensors = huggingface.find_parameters(found.weights, self.config)

    def check_same(self, pivot: "Input") -> None:
        """Checks that this is a target which the pivot could have become.

        Raises:
          UserError: its architecture or its vocabulary is another.
        """
        for name in ("num_layers", *(field.name for field in dataclasses.fields(DecoderConfig))):
            ours, theirs = (getattr(each.config, name) for each in (self, pivot))
            if ours != theirs:
                raise UserError(
                    f"target {self.source}: another architecture than the pivot's: {name} is {shown(ours)}, "
                    f"and {shown(theirs)} in the pivot {pivot.source}"
                )
        check_same_vocabulary(pivot.files, self.files, self.source)

    @property
    def dtype(self) -> np.dtype:
        """Of its weights; the most precise one if they have several. It is float32 for float64, too."""
        found = {DTYPES[self.tensors[name].dtype] for name in tensor_names(self.config)}
        return found.pop() if len(found) == 1 and np.dtype(np.float64) not in found else np.dtype(np.float32)


class Inputs:
    """The pivot and its targets, as `stack.Models` has them.

    Args:
      pivot: a directory or Hub id.
      targets: the same of each.

    Raises:
      UserError: as `Input`; a target is not of the pivot's architecture and vocabulary.
    """

    def __init__(self, pivot: str, targets: Sequence[str]):
        self.pivot = Input("pivot", pivot)
        self.all_targets = [Input("target", target) for target in targets]
        for target in self.all_targets:
            target.check_same(self.pivot)
        self.names = tensor_names(self.pivot.config)
        self.targets = len(targets)
        self._readers = concurrent.futures.ThreadPoolExecutor(_READERS, "inputs")

    def read(self, name: str) -> Stack:
        """A tensor of all models.

        Raises:
          UserError: a file cannot be read; a weight is NaN or infinite.
        """
        inputs = [self.pivot, *self.all_targets]
        waiting = [self._start(each.tensors[name]) for each in inputs]
        for _, tasks in waiting:
            for task in tasks:
                task.result()
        stack = Stack(name, waiting[0][0], tuple(array for array, _ in waiting[1:]), (1.0,) * self.targets)
        finite = np.logical_and.reduce(list(stack.map(lambda chunk: chunk.finite())))
        for each, is_finite in zip(inputs, finite, strict=True):
            if not is_finite:
                file = each.tensors[name].file
                raise UserError(
                    f"{each.role} {each.source}: {name} has NaN or infinite weights: {file} is a broken checkpoint"
                )
        return stack

    def _start(self, tensor: Tensor) -> tuple[np.ndarray, list[concurrent.futures.Future[None]]]:
        """An array, [N], and the reads that will have filled it."""
        array = np.empty(tensor.nbytes // DTYPES[tensor.dtype].itemsize, DTYPES[tensor.dtype])
        content = array.view(np.uint8).data
        tasks = [
            self._readers.submit(read_range, tensor.file, tensor.offset + start, content[start : start + _TASK_BYTES])
            for start in range(0, tensor.nbytes, _TASK_BYTES)
        ]
        return array, tasks


def tensor_names(config: DecoderConfig) -> list[str]:
    """Of a checkpoint's tensors; of a tied head and embedding, the embedding's."""
    return [name for parameter in parameters(config) for name in parameter.hf_names]
