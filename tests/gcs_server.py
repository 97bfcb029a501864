"""A Cloud Storage server on loopback for tests, honest or faulty: `gcp-storage-emulator`, with faults in front.

def test(gcs):                  # STORAGE_EMULATOR_HOST and TENSORSTORE_GCS_HTTP_URL name it, also for subprocesses
    path = epath.Path(gcs.bucket) / "a"     # gs://a-bucket-of-this-test
    with gcs.faults(0.2, seed=1):           # from here on a fifth of all requests goes wrong
        ...
"""

import contextlib
import io
import json
import logging
import random
import re
import socket
import struct
import sys
import threading
import urllib.parse
import uuid
from collections import Counter
from collections.abc import Iterator
from http import server
from typing import Any

import pytest
from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.storage import Storage

logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)  # it reports each object that is not there

PART = 2**18
"""What the server keeps of an upload that breaks is a multiple of this."""


class CloudStorage:
    """The server, its buckets, and what goes wrong with requests."""

    def __init__(self) -> None:
        self.storage = _Storage(use_memory_fs=True)
        self.bucket = ""
        """`gs://...`, a new one for each test."""
        self.served: Counter[str] = Counter()
        """Requests by what became of them: `ok`, or the kind of fault."""
        self._chance, self._random, self._kinds, self._spared = 0.0, random.Random(0), FAULTS, 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), lambda *args: _Handler(self, *args))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def new_bucket(self) -> str:
        """Makes an empty bucket, and makes it `bucket`."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        buckets.create_bucket(name, self.storage)
        self.bucket = f"gs://{name}"
        return self.bucket

    @contextlib.contextmanager
    def faults(
        self, chance: float, *, seed: int = 0, kinds: tuple[str, ...] | None = None, after: int = 0
    ) -> Iterator[None]:
        """Within the block, `after` so many requests, each one goes wrong with this chance.

        Args:
          kinds: what can happen, of `FAULTS`, or another status to refuse requests with. By default any of `FAULTS`.
        """
        self._chance, self._random, self._kinds, self._spared = chance, random.Random(seed), kinds or FAULTS, after
        try:
            yield
        finally:
            self._chance = 0.0

    def objects(self) -> dict[str, bytes]:
        """What the test's bucket holds, by name."""
        name = self.bucket.removeprefix("gs://")
        with self._lock:
            return {key: self.storage.get_file(name, key) for key in self.storage.objects.get(name, {})}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def draw(self) -> str | None:
        """What goes wrong with the next request."""
        with self._lock:
            self._spared -= 1
            goes_wrong = self._spared < 0 and self._random.random() < self._chance
            return self._random.choice(self._kinds) if goes_wrong else None


FAULTS = ("429", "503", "reset while sending", "half of an upload kept", "answer lost", "answer cut")
"""What can happen to a request:

429, 503: refused. Reset while sending: the server never sees it whole. Half of an upload kept: the server stores a part
of what is sent to a resumable upload, and the connection breaks. Answer lost: done, but the client does not hear of it.
Answer cut: half of the answer arrives.
"""


class _Storage(Storage):
    """The emulator's storage with two rules of the real one, which decide what a client may send twice.

    Bytes that an upload already holds are ignored when they are sent again, and a complete upload is answered with its
    object again: https://cloud.google.com/storage/docs/performing-resumable-uploads
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._complete: dict[str, tuple[Any, bytes]] = {}

    def add_to_resumable_upload(
        self, file_id: str, content: bytes, total_size: int | None = None, expected_start: int | None = None
    ) -> bytes | None:
        if file_id in self._complete:
            return self._complete[file_id][1]
        try:
            kept = len(self.get_file("_resumable", self.safe_id(file_id), False))
        except NotFound:
            kept = 0
        if expected_start is not None and expected_start < kept:
            content, expected_start = content[kept - expected_start :], kept
        return super().add_to_resumable_upload(file_id, content, total_size, expected_start)

    def get_resumable_file_obj(self, file_id: str) -> Any:
        kept = self._complete.get(file_id)
        return kept[0] if kept else super().get_resumable_file_obj(file_id)

    def get_resumable_byte_count(self, file_id: str) -> int:
        return (
            len(self._complete[file_id][1]) if file_id in self._complete else super().get_resumable_byte_count(file_id)
        )

    def create_file(self, bucket: str, name: str, content: bytes, file_obj: Any, file_id: str | None = None) -> None:
        if file_id is None or file_id not in self._complete:
            super().create_file(bucket, name, content, file_obj, file_id)
        if file_id is not None:
            self._complete[file_id] = file_obj, content

    def _write_config_to_file(self) -> None:
        """Nothing: it is in memory, and writing the list of all objects at each change takes most of the time."""


class _Server(server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing where a client has gone, as those do that a fault has hit."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(emulator.RequestHandler):
    """One request of the emulator's, and its fault."""

    protocol_version = "HTTP/1.1"

    def __init__(self, cloud: CloudStorage, *args: Any):
        self._cloud = cloud
        super().__init__(cloud.storage, *args)

    def do_GET(self) -> None:
        self._serve("GET")

    do_POST = do_PUT = do_DELETE = do_PATCH = lambda self: self._serve(self.command)

    def _serve(self, method: str) -> None:
        fault = self._cloud.draw()
        length = int(self.headers.get("Content-Length") or 0)
        if fault == "reset while sending":
            self.rfile.read(length // 2)
            return self._reset(fault)
        body = self.rfile.read(length) if length else self._chunks()
        if fault is not None and fault.isdecimal():
            self._cloud.served[fault] += 1
            self._generation = None
            return self._refuse(int(fault))
        if fault == "half of an upload kept":
            body = self._shortened(body)
            if body is None:
                fault = "answer lost"
        answer = self._answer(method, body or b"")
        if fault in ("answer lost", "half of an upload kept"):
            return self._reset(fault)
        if fault == "answer cut":
            self.wfile.write(answer[: len(answer) // 2])
            return self._reset(fault)
        self._cloud.served["ok"] += 1
        self.wfile.write(answer)
        return None

    def _answer(self, method: str, body: bytes) -> bytes:
        """The answer to the request, headers included: the emulator's, with generations, which it does not know."""
        connection, self.rfile, self.wfile = (self.rfile, self.wfile), io.BytesIO(body), io.BytesIO()  # type: ignore[assignment]
        if "Transfer-Encoding" in self.headers:
            del self.headers["Transfer-Encoding"]
            self.headers["Content-Length"] = str(len(body))
        try:
            with self._cloud._lock:
                self._generation = self._current_generation()
                status = self._precondition(method)
                if status:
                    self._refuse(status)
                else:
                    emulator.Router(self).handle(method)
            return self.wfile.getvalue()  # type: ignore[attr-defined]
        finally:
            self.rfile, self.wfile = connection

    def _refuse(self, status: int) -> None:
        error = {"code": status, "message": f"refused with {status}"}
        answer = b"" if status == 304 else json.dumps({"error": error}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def end_headers(self) -> None:
        if self._generation is not None:
            self.send_header("X-Goog-Generation", self._generation)
        super().end_headers()

    def _current_generation(self) -> str | None:
        """Of the object that the request is about, "0" if it is not there; None if it is about none."""
        address = urllib.parse.urlsplit(self.path)
        match = re.search(r"/b/([^/]+)/o(?:/([^/]+))?$", address.path)
        name = match and (match[2] or urllib.parse.parse_qs(address.query).get("name", [""])[0])
        if not match or not name:
            return None
        found = self.storage.objects.get(match[1], {}).get(urllib.parse.unquote(name))
        return found["generation"] if found else "0"

    def _precondition(self, method: str) -> int | None:
        """The status to refuse the request with, if the object is not, or still is, of the generation that it names."""
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        if query.get("ifGenerationMatch", [self._generation]) != [self._generation]:
            return 412
        if query.get("ifGenerationNotMatch") == [self._generation]:
            return 304 if method == "GET" else 412
        return None

    def _chunks(self) -> bytes:
        """A body in HTTP's chunked encoding."""
        body = b""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return body

    def _shortened(self, body: bytes) -> bytes | None:
        """Makes the request one that sends the first half only; None if it is no part of an upload, or too short."""
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", self.headers.get("Content-Range", ""))
        kept = len(body) // 2 // PART * PART
        if match is None or not kept:
            return None
        first = int(match[1])
        self.headers.replace_header("Content-Range", f"bytes {first}-{first + kept - 1}/*")
        self.headers.replace_header("Content-Length", str(kept))
        return body[:kept]

    def _reset(self, fault: str) -> None:
        """Ends the connection as a broken network does."""
        self._cloud.served[fault] += 1
        self.close_connection = True
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        # What BaseHTTPRequestHandler still wants to flush.
        self.rfile, self.wfile = io.BytesIO(), io.BytesIO()  # type: ignore[assignment]

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[CloudStorage]:
    cloud = CloudStorage()
    yield cloud
    cloud.close()


@pytest.fixture
def gcs(
    gcs_server: CloudStorage, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> CloudStorage:
    """The server with an empty bucket, named by the environment; nothing goes wrong unless `faults` says so."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.url)
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", gcs_server.url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))  # where shards are copied to
    gcs_server.new_bucket()
    gcs_server.served.clear()
    return gcs_server
