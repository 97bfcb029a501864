"""What attacks on the sandbox reach for, and how to see that none of them got it, nor is left running."""

import os
import socket
import time
from pathlib import Path

import pytest

SECRET = "SECRET-7345"


class Bait:
    """What attacks reach for, and would get if they could: a file that anybody may read, a folder, a server."""

    def __init__(self, folder: Path, server: socket.socket):
        for path in (folder, *list(folder.parents)[:2]):
            path.chmod(0o755)
        self._secret = folder / "secret.txt"
        self._secret.write_text(SECRET)
        self._open = folder / "open"
        self._open.mkdir()
        self._open.chmod(0o777)
        self._server = server
        self.words = {
            "SECRET_FILE": str(self._secret),
            "OUTSIDE": str(self._open / "x"),
            "PORT": str(server.getsockname()[1]),
        }

    def check(self) -> None:
        """Nobody took it."""
        assert self._secret.read_text() == SECRET
        assert not list(self._open.iterdir())
        with pytest.raises(BlockingIOError):
            self._server.accept()


def children() -> set[int]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == os.getpid() and state not in "ZX":
            found.add(int(path.parent.name))
    return found


def nobody_left(before: set[int]) -> bool:
    for _ in range(100):
        if children() <= before:
            return True
        time.sleep(0.05)
    return False
