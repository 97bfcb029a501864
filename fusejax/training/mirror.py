"""Logs of a run whose `output_dir` is in `gs://`: written on disk, and uploaded again as they grow."""

import tempfile
import threading
from pathlib import Path

from etils import epath

from fusejax.common.cli import UserError, note
from fusejax.common.files import copy

PERIOD = 60.0
"""Seconds between uploads."""


class Mirror:
    """A folder on disk that is copied to `target` every `PERIOD` seconds, when `upload` is called, and at the end.

    An object cannot be appended to, so each file that has grown is sent again as a whole: this is for small files. A
    process that is killed loses what was written since the last upload.
    """

    def __init__(self, target: epath.Path):
        self._target = target
        self._temporary = tempfile.TemporaryDirectory(prefix="fusejax-")
        self.folder = Path(self._temporary.name)
        self._sent: dict[Path, int] = {}
        """Files and their sizes when they were sent."""
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep_uploading, name="mirror", daemon=True)
        self._thread.start()

    def upload(self) -> None:
        """Returns when everything that has been written to the folder's files is in `target`.

        Raises:
          UserError: it cannot be sent.
        """
        with self._lock:
            for file in sorted(self.folder.rglob("*")):
                size = file.stat().st_size
                if file.is_file() and self._sent.get(file) != size:
                    copy(file, self._target / file.relative_to(self.folder))
                    self._sent[file] = size

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        try:
            self.upload()
        finally:
            self._temporary.cleanup()

    def _keep_uploading(self) -> None:
        while not self._closing.wait(PERIOD):
            try:
                self.upload()
            except UserError as error:
                note(f"{error}; the next upload sends it too")
