"""Messages over two pipes: four bytes of length, then JSON."""

import json
import os
from typing import Any

MAX_BYTES = 2**23

_write = json.JSONEncoder(separators=(",", ":")).encode


class Closed(BaseException):
    """The other side has gone. Not an `Exception`, so that tests do not catch it."""


class TooLong(Exception):
    """A message beyond `MAX_BYTES`."""


class Channel:
    def __init__(self, incoming: int, outgoing: int):
        self._in, self._out = incoming, outgoing

    def send(self, message: Any) -> None:
        """Raises Closed, or TooLong."""
        # Text that UTF-8 cannot hold (lone surrogates) travels escaped.
        data = _write(message).encode()
        if len(data) > MAX_BYTES:
            raise TooLong
        view = memoryview(len(data).to_bytes(4, "big") + data)
        try:
            while view:
                view = view[os.write(self._out, view) :]
        except OSError:
            raise Closed from None

    def receive(self) -> Any:
        """Raises Closed, TooLong, or ValueError where it is no JSON."""
        length = int.from_bytes(self._read(4), "big")
        if length > MAX_BYTES:
            raise TooLong
        try:
            return json.loads(self._read(length))
        except RecursionError:
            raise ValueError("nested too deep") from None

    def _read(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            try:
                part = os.read(self._in, min(count - len(parts), 2**20))
            except OSError:
                raise Closed from None
            if not part:
                raise Closed
            parts += part
        return bytes(parts)
