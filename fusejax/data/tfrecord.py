"""TFRecord files without tensorflow. Each record is a length, its checksum, the bytes and their checksum.

Format: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
"""

import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import google_crc32c


class CorruptError(Exception):
    """A TFRecord file whose checksums or lengths do not match its contents."""


_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")


def write(path: Path, records: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        for record in records:
            length = _LENGTH.pack(len(record))
            file.write(length + _checksum(length) + record + _checksum(record))


class Reader:
    """Random access by index. The file is scanned once, to check all checksums and find where each record lies.

    Raises:
      CorruptError: at construction, if the file is cut or altered.
    """

    def __init__(self, path: Path):
        # Kept open and read by position, so that threads share it without a lock.
        self._path = path
        self._file = path.open("rb")
        self._spans: list[tuple[int, int]] = []
        header = _LENGTH.size + _CHECKSUM.size
        size, position = path.stat().st_size, 0
        while position < size:
            head = self._file.read(header)
            where = f"record {len(self._spans)} at byte {position}"
            if len(head) < header or head[_LENGTH.size :] != _checksum(head[: _LENGTH.size]):
                raise CorruptError(f"{where}: bad header")
            (length,) = _LENGTH.unpack_from(head)
            if position + header + length + _CHECKSUM.size > size:
                raise CorruptError(f"{where}: cut off")
            record = self._file.read(length)
            if self._file.read(_CHECKSUM.size) != _checksum(record):
                raise CorruptError(f"{where}: checksum does not match")
            self._spans.append((position + header, length))
            position += header + length + _CHECKSUM.size

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_spans": self._spans}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _file=state["_path"].open("rb"))

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> bytes:
        offset, length = self._spans[index]
        return os.pread(self._file.fileno(), length, offset)


def _checksum(data: bytes) -> bytes:
    """CRC-32C, rotated and offset as TFRecord "masks" it."""
    crc = google_crc32c.value(data)
    return _CHECKSUM.pack((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)
