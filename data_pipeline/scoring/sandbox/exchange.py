"""What a script is given and what it prints, over pipes. Runs in the judge."""

import contextlib
import os
import select
import time
from dataclasses import dataclass

MAX_OUTPUT_BYTES = 2**24
_ERROR_BYTES = 2_000
"""Kept of the end of standard error, for the detail."""


@dataclass
class Printed:
    output: bytes = b""
    error: bytes = b""
    """The end of it."""
    too_much: bool = False
    """Output or standard error reached the limit, and nobody read on."""


def exchange(given: bytes, stdin: int, stdout: int, stderr: int, deadline: float) -> Printed:
    """Writes what is given to one descriptor and reads the others until both end; closes all three.

    Args:
      deadline: of `time.monotonic`; what was printed until then counts.
    """
    printed, output, error, errors = Printed(), bytearray(), b"", 0
    view = memoryview(given)
    waiting = select.poll()
    waiting.register(stdin, select.POLLOUT)
    for descriptor in (stdout, stderr):
        waiting.register(descriptor, select.POLLIN)
    is_open = {stdin, stdout, stderr}

    def close(descriptor: int) -> None:
        waiting.unregister(descriptor)
        os.close(descriptor)
        is_open.remove(descriptor)

    os.set_blocking(stdin, False)
    try:
        while is_open & {stdout, stderr}:
            ready = waiting.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready:
                break
            for descriptor, _ in ready:
                if descriptor == stdin:
                    try:
                        view = view[os.write(stdin, view) :]
                    except BlockingIOError:
                        continue
                    except OSError:  # Nobody reads it.
                        view = view[:0]
                    if not view:
                        close(stdin)
                    continue
                part = os.read(descriptor, 2**16)
                if not part:
                    close(descriptor)
                    continue
                if descriptor == stdout:
                    output += part
                else:
                    error, errors = (error + part)[-_ERROR_BYTES:], errors + len(part)
                if max(len(output), errors) > MAX_OUTPUT_BYTES:
                    printed.too_much = True
                    close(descriptor)
    finally:
        for descriptor in is_open:
            with contextlib.suppress(OSError):
                os.close(descriptor)
    printed.output, printed.error = bytes(output), error
    return printed
