"""Google Cloud Storage as this project needs it: `gs://` behind `epath.Path`, for our own files and for Orbax's.

gcsfs implements the protocol; `CloudStorage` changes four things:

- Nothing is cached. gcsfs keeps listings, and would not see what another host, or tensorstore in this very process,
  has written since.
- Every request is tried again, for two minutes: when the server is busy (429) or fails (5xx), and when the connection
  breaks. Any request may safely reach the server twice: a read asks for a range of an object, and a write replaces a
  whole object, or is the part of an upload at one position.
- What cannot succeed is a `UserError` that names the object: no credentials, no permission, no such bucket, a server
  that cannot be reached. Only a missing object is left to the caller, as `FileNotFoundError`, and deleting one is no
  error.
- What is written appears as a whole when the file is closed, verified by its MD5, or never: gcsfs would keep what had
  been written before an exception.

It is registered with fsspec when `fusejax` is imported. The environment variable `STORAGE_EMULATOR_HOST` (such as
`http://127.0.0.1:9023`) selects another server.
"""

import asyncio
import errno
import os
import random
import re
import time
import urllib.parse
from typing import Any

import aiohttp
from etils import epath
from gcsfs.core import GCSFile, GCSFileSystem
from gcsfs.retry import ChecksumError, HttpError, is_retriable
from google.auth.exceptions import GoogleAuthError

from fusejax.common.cli import UserError, note, one_line

PATIENCE = 120.0
"""Seconds after which a request that keeps failing is given up."""
_FIRST_DELAY, _LONGEST_DELAY = 0.25, 32.0
"""Seconds between tries: doubled each time from the first to the longest, each shortened at random."""
_QUIET = 15.0
"""Seconds of trying again before the user is told."""
_TIMEOUTS = aiohttp.ClientTimeout(total=300, sock_connect=30, sock_read=60)
"""Of one try, in seconds: in total, to connect, and without receiving a byte."""
_BLOCK = 2**24
"""Bytes of an upload that are sent with one request, and kept in memory until then."""
_CREDENTIALS = (
    "no valid Google Cloud credentials; log in with `gcloud auth application-default login`, "
    "or run as a service account that may use the bucket"
)


class CloudStorage(GCSFileSystem):
    """`gcsfs.GCSFileSystem` with the guarantees above. Not for zonal ("Rapid") buckets, which have another protocol."""

    def __init__(self, **options: Any):
        super().__init__(use_listings_cache=False, consistency="md5", requests_timeout=_TIMEOUTS, **options)

    async def _request(self, method: str, path: str, *args: Any, **options: Any) -> Any:
        """One request, tried until it succeeds, cannot succeed, or has failed for `PATIENCE` seconds.

        Raises:
          FileNotFoundError: no such object.
          UserError: any other failure.
        """
        url = self._format_path(path, args)
        name = _name(url, options.get("prefix"))
        start, tries, told = time.monotonic(), 0, False
        while True:
            tries += 1
            try:
                # `__wrapped__` leaves out gcsfs' own retrying, which gives up sooner, with errors of many types.
                return await GCSFileSystem._request.__wrapped__(self, method, path, *args, **options)
            except FileNotFoundError as error:
                if method == "DELETE":
                    return 204, {}, None, b""  # an earlier try may have done it, ours or one that aiohttp makes
                if "/o/" in url:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from error
                missing = "the server has ended this upload; try again" if "upload_id=" in url else "no such bucket"
                raise UserError(f"{name}: {missing}") from error
            except Exception as error:
                if not _may_pass(error):
                    if _is_callers(error, url):
                        raise
                    raise UserError(f"{name}: {_explanation(error)}") from error
                waited = time.monotonic() - start
                if waited > PATIENCE:
                    raise UserError(
                        f"{name}: given up after {tries} tries in {waited:.0f} s: {_explanation(error)}"
                    ) from error
                if waited > _QUIET and not told:
                    note(f"{name}: trying again after: {_explanation(error)}")
                    told = True
                delay = min(_FIRST_DELAY * 2 ** (tries - 1), _LONGEST_DELAY)
                await asyncio.sleep(delay * random.uniform(0.5, 1))

    def mkdir(self, path: str, create_parents: bool = True, **options: Any) -> None:
        """Does nothing: objects need no folder. gcsfs would make the bucket if it is missing, or misspelt."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Does nothing, as `mkdir`."""

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        """A file; text is UTF-8 whatever the machine's locale."""
        if "b" not in mode:
            options["encoding"] = "utf-8"
        return super().open(path, mode, **options)

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> "_Object":
        return _Object(self, path, mode, block_size or _BLOCK, consistency=self.consistency, **options)


class _Object(GCSFile):
    """An object that is read by ranges, or written from first byte to last."""

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        # In pieces, because gcsfs copies each before it sends what is full.
        for start in range(0, len(view), _BLOCK):
            super().write(view[start : start + _BLOCK])
        return len(view)

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is not None and self.mode != "rb":
            self.abandon()
        super().__exit__(kind, error, traceback)

    def abandon(self) -> None:
        """Closes a file that is being written, so that nothing of it appears."""
        self.closed = True

    def _upload_chunk(self, final: bool = False) -> bool:
        try:
            return super()._upload_chunk(final)
        except ChecksumError:
            self.abandon()
            self.fs.rm_file(self.path)
            raise UserError(f"gs://{self.path}: damaged on its way, and removed; try again") from None
        except BaseException:
            self.abandon()
            raise


def check_writable(path: epath.Path) -> None:
    """Finds out whether an object may be written, by starting an upload and abandoning it, which leaves nothing behind.

    Raises:
      UserError: it may not.
    """
    file: Any = path.open("wb")
    try:
        file._initiate_upload()
    finally:
        file.abandon()


def check_bucket(path: epath.Path) -> None:
    """Finds out whether the bucket's metadata may be read. Orbax needs that, in some cases only when it deletes.

    Raises:
      UserError: it may not.
    """
    file: Any = path.open("wb")
    file.abandon()
    try:
        file.gcsfs.call("GET", "b/{}", file.bucket)
    except OSError as error:
        raise UserError(
            f"gs://{file.bucket}: {_explanation(error)}; checkpoints need storage.buckets.get, "
            "as in roles/storage.legacyBucketReader"
        ) from error


def _may_pass(error: Exception) -> bool:
    """Whether another try may succeed."""
    if isinstance(error.__cause__, GoogleAuthError):
        return error.__cause__.retryable  # gcsfs calls every failure to get a token invalid credentials
    return is_retriable(error) or isinstance(error, TimeoutError | ConnectionError)


def _is_callers(error: Exception, url: str) -> bool:
    """Whether gcsfs handles the error: it can do without a bucket's metadata, and reads past an object's end."""
    if isinstance(error, HttpError):
        return error.code == 416
    is_bucket = re.search(r"/b/[^/]+$", url) is not None
    return is_bucket if isinstance(error, OSError) else not isinstance(error, ValueError | GoogleAuthError)


def _explanation(error: Exception) -> str:
    text = one_line(error)
    if isinstance(error, GoogleAuthError) or (isinstance(error, HttpError) and str(error.code) == "401"):
        return f"{_CREDENTIALS} ({text})"
    if isinstance(error, OSError) and text.startswith("Forbidden"):
        return f"permission denied ({text.partition(' ')[2].partition(' ')[2] or 'no reason given'})"
    return text


def _name(url: str, prefix: str | None) -> str:
    """The request's object, or bucket, as `gs://...`."""
    parts = urllib.parse.urlsplit(url)
    found = re.search(r"/b/([^/]+)(?:/o/([^/]+))?", parts.path)
    if found is None:
        return "gs://"
    key = found[2] or urllib.parse.parse_qs(parts.query).get("name", [prefix or ""])[0]
    return f"gs://{found[1]}/{urllib.parse.unquote(key)}".rstrip("/")
