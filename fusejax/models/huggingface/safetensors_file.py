"""The safetensors format, for what the library of that name lacks: ranges of remote files, writing in a stream.

A file is the header's length in 8 bytes, little-endian; the header, a JSON object from each tensor's name to its dtype,
shape and range of bytes; and the tensors' bytes, row-major, one after the other without gaps.
Source: https://huggingface.co/docs/safetensors
"""

import dataclasses
import errno
import itertools
import json
import math
import mmap
import os
import struct
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import ml_dtypes
import numpy as np
from etils import epath

from fusejax.common.cli import UserError, one_line
from fusejax.common.files import is_remote
from fusejax.common.small_files import ANYTHING, TEXT, check, list_of, object_of, whole

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""The dtypes of weights, by the format's names."""

_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER = 100_000_000
"""In bytes; the library's own limit."""
_ALIGNMENT = 8
_ENTRY = {"dtype": TEXT, "shape": list_of(whole(0, 2**40)), "data_offsets": list_of(whole(0, 2**62))}
"""What a header says of a tensor."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor's bytes are."""

    file: epath.Path
    dtype: str
    """As the format names it; perhaps none of `DTYPES`."""
    shape: tuple[int, ...]
    offset: int
    """Of its first byte, from the beginning of the file."""
    nbytes: int


def read_header(file: epath.Path) -> dict[str, Tensor]:
    """The file's tensors by name; no more than the header is read.

    Raises:
      FileNotFoundError: no such file.
      UserError: it is no safetensors file, or not a whole one.
    """
    size = file.stat().length
    if not is_remote(file) and not Path(file).is_file():
        raise UserError(f"{file}: not a regular file")
    try:
        with file.open("rb") as opened:
            start = opened.read(_LENGTH.size)
            if len(start) < _LENGTH.size:
                raise ValueError("the file ends within the header's length")
            (length,) = _LENGTH.unpack(start)
            if length > min(size - _LENGTH.size, _LONGEST_HEADER):
                raise ValueError(f"its header would have {length} bytes")
            tensors = _parse(file, opened.read(length), _LENGTH.size + length)
        end = max((tensor.offset + tensor.nbytes for tensor in tensors.values()), default=_LENGTH.size + length)
        if end != size:
            raise ValueError(f"the header tells of {end} bytes, but the file has {size}")
        return tensors
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError) as error:
        raise UserError(f"{file}: not a whole safetensors file ({one_line(error)})") from None


def _parse(file: epath.Path, header: bytes, data: int) -> dict[str, Tensor]:
    """The tensors of a header; `data` is where in the file their bytes begin."""
    entries = json.loads(header)
    if not isinstance(entries, dict):
        raise ValueError("its header is no JSON object")
    entries.pop("__metadata__", None)
    tensors = {}
    end = 0
    for name, entry in entries.items():
        check({name: entry}, {name: object_of(ANYTHING)})
        check(entry, _ENTRY)
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        (start, stop), shape = entry["data_offsets"], tuple(entry["shape"])
        dtype = DTYPES.get(entry["dtype"])
        if start != end or stop < start or (dtype and stop - start != math.prod(shape) * dtype.itemsize):
            raise ValueError(f"tensor {name} cannot have the bytes from {start} to {stop}")
        tensors[name] = Tensor(file, entry["dtype"], shape, data + start, stop - start)
        end = stop
    return tensors


def read_range(file: epath.Path, offset: int, target: memoryview) -> None:
    """Fills `target` with the file's bytes from `offset` on. Any number of threads may do so.

    Raises:
      UserError: the file has fewer bytes, or cannot be read.
    """
    try:
        if is_remote(file):
            system, path = fsspec.core.url_to_fs(str(file))
            data = system.cat_file(path, start=offset, end=offset + target.nbytes)
            target[: len(data)] = data
            read = len(data)
        else:
            read = _read_local(file, offset, target)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({one_line(error)})") from None
    if read < target.nbytes:
        raise UserError(f"{file}: ends at byte {offset + read}, within a tensor; did it change?")


def _read_local(file: epath.Path, offset: int, target: memoryview) -> int:
    """Reads by direct I/O and returns the number of bytes: the page cache costs more CPU time than all else here.

    `mmap` is not used, so that what is read counts as this process's memory only once, in `target`.
    """
    descriptor = _open_local(file)
    try:
        done = 0
        while done < target.nbytes:
            start = (offset + done) // _SECTOR * _SECTOR
            skipped = offset + done - start
            read = os.preadv(descriptor, [_block()], start)
            count = min(read - skipped, target.nbytes - done)
            if count <= 0:
                break
            # NumPy, unlike memoryview, lets other threads run meanwhile.
            np.copyto(np.frombuffer(target[done : done + count], np.uint8), _block()[skipped : skipped + count])
            done += count
        return done
    finally:
        os.close(descriptor)


def _open_local(file: epath.Path) -> int:
    try:
        return os.open(file, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(file, os.O_RDONLY)  # some file systems, such as those in memory, have no direct I/O


def _block() -> memoryview:
    """This thread's read buffer; its address is a multiple of the page size, as direct I/O demands."""
    if not hasattr(_thread, "block"):
        _thread.block = memoryview(mmap.mmap(-1, _BLOCK))
    return _thread.block


_SECTOR = 4096
"""Alignment of direct reads: a multiple of the sector size of any disk."""
_BLOCK = 2**20
"""Bytes per read: they fit into a core's cache, and larger reads are no faster."""
_thread = threading.local()


def make_header(shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype) -> bytes:
    """The bytes of a file before its tensors, which must follow in this order."""
    name = next(name for name, known in DTYPES.items() if known == dtype)
    ends = itertools.accumulate(math.prod(shape) * dtype.itemsize for shape in shapes.values())
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # which transformers insists on
    start = 0
    for (tensor, shape), end in zip(shapes.items(), ends, strict=True):
        entries[tensor] = {"dtype": name, "shape": shape, "data_offsets": (start, end)}
        start = end
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    return _LENGTH.pack(len(header)) + header
