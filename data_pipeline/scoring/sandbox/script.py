"""The untrusted side of a script: runs it as `python main.py` would. No verdict relies on anything here."""

import atexit
import builtins
import contextlib
import io
import json
import os
import signal
import sys
import threading
import types
from typing import Any

from .program import describe

ERROR_STATUS = 1
"""Exit status of a script that raised an exception, as Python's own."""


def run() -> None:
    """Reads a script from descriptor 0 and runs it; what follows there is its standard input. Does not return.

    The script comes as four bytes of length, then JSON: `setting`, which runs first, and `code`.
    """
    script = json.loads(_exactly(int.from_bytes(_exactly(4), "big")))
    # Where nobody reads any more, writing ends the process.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    atexit._clear()
    _threads_run_at_once()
    _open_streams()
    printed = sys.stdout
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    sys.argv = ["main.py"]
    # As Python's `site` does.
    vars(builtins).update(exit=sys.exit, quit=sys.exit)
    status = 0
    try:
        exec(compile(script["setting"], "setting.py", "exec"), main.__dict__)
        exec(compile(script["code"], "main.py", "exec"), main.__dict__)
    except SystemExit:
        pass
    except BaseException as error:
        status = ERROR_STATUS
        _say(error)
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, printed):
        with contextlib.suppress(BaseException):
            stream.flush()
    os._exit(status)


def _exactly(count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = os.read(0, count - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def _open_streams() -> None:
    """Streams of its own: those of the zygote have buffers, and another encoding perhaps."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        raw = io.FileIO(descriptor, "w" if descriptor else "r", closefd=False)
        buffer: Any = io.BufferedWriter(raw) if descriptor else io.BufferedReader(raw)
        stream = io.TextIOWrapper(buffer, encoding="utf-8", write_through=name == "stderr")
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _say(error: BaseException) -> None:
    with contextlib.suppress(BaseException):
        os.write(2, ("\n" + " ".join(describe(error).split())).encode(errors="replace"))


def _threads_run_at_once() -> None:
    """Makes a thread run to its end when it is started.

    The sandbox grants no threads. Scripts start one for its bigger stack, and wait for it; this process has that stack.
    """

    def start(thread: Any) -> None:
        if thread._started.is_set():
            raise RuntimeError("threads can only be started once")
        thread._started.set()
        try:
            thread.run()
        except SystemExit:
            pass
        except Exception as error:
            _say(error)

    def join(thread: Any, timeout: float | None = None) -> None:
        pass

    def is_alive(thread: Any) -> bool:
        return False

    for method in (start, join, is_alive):
        setattr(threading.Thread, method.__name__, method)
