"""Writes parameters to safetensors files, tensor by tensor, from any number of processes, on disk or in a bucket.

All shapes are known beforehand, so a file's header is written first and its tensors stream after it, each being fetched
while the one before is written. With several processes, all gather the tensors together, and the first writes.
"""

import concurrent.futures
import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import Int

from fusejax.common.cli import UserError
from fusejax.common.files import replacing, write_text
from fusejax.models.huggingface.names import Parameter
from fusejax.models.huggingface.safetensors_file import make_header

INDEX = "model.safetensors.index.json"

_WRITE_BYTES = 2**24

Fetch = Callable[[], np.ndarray]


@runtime_checkable
class Source(Protocol):
    """Where parameters are taken from."""

    on_all_processes: bool
    """Whether fetching a piece is a collective operation of all processes."""

    def pieces(self, parameter: Parameter, block: int) -> Iterable[Fetch]:
        """Functions that return one tensor: whole, or one range of rows after the other.

        Args:
          parameter: which.
          block: the index on its stack axis; 0 if it has none.
        """


class Arrays:
    """Parameters on the devices of one or several processes.

    Args:
      arrays: by the parameters' paths.
      dtype: what they are rounded to, on the devices.
    """

    on_all_processes = True

    def __init__(self, arrays: Mapping[str, jax.Array], dtype: np.dtype):
        self._arrays, self._dtype = arrays, dtype

    def pieces(self, parameter: Parameter, block: int) -> Iterable[Fetch]:
        return [lambda: self._gather(parameter, block)]

    def _gather(self, parameter: Parameter, block: int) -> np.ndarray:
        array = _take(self._arrays[parameter.path], block, stacked=parameter.stacked, dtype=self._dtype)
        return np.asarray(array) if array.is_fully_addressable else multihost_utils.process_allgather(array, tiled=True)


@functools.partial(jax.jit, static_argnames=("stacked", "dtype"))
def _take(array: jax.Array, block: int | Int[jax.Array, ""], *, stacked: bool, dtype: np.dtype) -> jax.Array:
    taken = jax.lax.dynamic_index_in_dim(array, block, 0, keepdims=False) if stacked else array
    return taken.astype(dtype)


class WeightFiles:
    """The files that a model is written to, and the stream of tensors that goes into them.

    Args:
      source: of the parameters.
      table: see `names.parameters`.
      dtype: of the tensors written; the source gives them in it.
      max_bytes: limit of one file; a larger tensor gets a file of its own.
    """

    def __init__(self, source: Source, table: list[Parameter], dtype: np.dtype, max_bytes: float):
        self._dtype = dtype
        self._files: list[list[tuple[str, Parameter]]] = [[]]
        fetches: list[Iterable[Fetch]] = []
        room = max_bytes
        for parameter in table:
            size = self._size(parameter)
            for block, name in enumerate(parameter.hf_names):
                if self._files[-1] and size > room:
                    self._files.append([])
                    room = max_bytes
                self._files[-1].append((name, parameter))
                room -= size
                fetches.append(source.pieces(parameter, block))
        self._fetched = _fetch_ahead(fetch for pieces in fetches for fetch in pieces)

    def write(self, directory: epath.Path) -> None:
        """Writes the files, and last their index. Called once, by one process; the others `help`."""
        weight_map: dict[str, str] = {}
        for number, tensors in enumerate(self._files, start=1):
            name = f"model-{number:05d}-of-{len(self._files):05d}.safetensors"
            weight_map |= {tensor: name for tensor, _ in tensors}
            with replacing(directory / name) as file:
                file.write(make_header({tensor: parameter.hf_shape for tensor, parameter in tensors}, self._dtype))
                for _, parameter in tensors:
                    missing = self._size(parameter)
                    while missing:
                        piece = next(self._fetched)
                        data = np.ascontiguousarray(piece)
                        content = data.reshape(-1).view(np.uint8).data
                        for start in range(0, len(content), _WRITE_BYTES):  # a file of a bucket copies what it is given
                            file.write(content[start : start + _WRITE_BYTES])
                        missing -= data.nbytes
                        del piece, data, content
        total = sum(self._size(parameter) for tensors in self._files for _, parameter in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_text(directory / INDEX, json.dumps(index, indent=2) + "\n")

    def help(self) -> None:
        """Takes part in gathering whatever has not been gathered yet."""
        for _ in self._fetched:
            pass

    def _size(self, parameter: Parameter) -> int:
        return math.prod(parameter.hf_shape) * self._dtype.itemsize


def _fetch_ahead(fetches: Iterable[Fetch]) -> Iterator[np.ndarray]:
    """The fetched arrays in order, the next being fetched in a thread of its own."""
    with concurrent.futures.ThreadPoolExecutor(1, "weights") as thread:
        ahead: concurrent.futures.Future[np.ndarray] | None = None
        for fetch in fetches:
            following = thread.submit(fetch)
            if ahead is not None:
                yield ahead.result()
            ahead = following
            del following
        if ahead is not None:
            yield ahead.result()


def on_first_process(action: Callable[[], None], help_: Callable[[], None], what: str) -> None:
    """Calls `action` in the first process, then `help_` in all, even if `action` has failed; in that case all raise.

    Args:
      action: if it fails, the others must not be left waiting in a collective operation that `help_` does not complete.
      help_: what all must do together.
      what: names the action in the error of the others.

    Raises:
      UserError: in the other processes, if the action has failed; in the first, the action's own exception.
    """
    failure: Exception | None = None
    if jax.process_index() == 0:
        try:
            action()
        except Exception as error:
            failure = error
    failed = failure is not None
    if jax.process_count() > 1:
        help_()
        failed = bool(multihost_utils.broadcast_one_to_all(np.asarray(failed)))
    if failure is not None:
        raise failure
    if failed:
        raise UserError(f"{what}: the first process failed; its own message says why")
