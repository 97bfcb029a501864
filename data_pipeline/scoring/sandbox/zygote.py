"""Forks an examiner and a program for each job, or a script, and ends them.

Started inside the tier's isolation, it imports all that jobs may use and drops its user. A byte on stdin, a socket,
announces a job, which only the examiner reads; on stdout the examiner writes its report, and then the zygote how both
ended. A script's byte comes with three descriptors, from which and to which the script alone reads and writes.
"""

import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import confine, script
from .channel import Channel
from .examiner import examine
from .heap import Heap
from .program import serve

POLL_MS = 50
MAX_WINDOWS = 4
"""Most times that a job which keeps computing gets its wall time."""
ASLEEP_SHARE = 0.05
"""A job that used less than this share of a core counts as asleep."""
SCRATCH_BYTES, SCRATCH_FILES = 2**24, 64
CONFINEMENT_FAILED = 97
"""Exit status of a process that could not be confined, so ran nothing."""
_NULL = os.open(os.devnull, os.O_RDWR)
"""Opened while that is still allowed."""


def main(settings: dict) -> None:
    """Serves jobs until stdin closes.

    Args:
      settings: modules to import, packages (folders with those that are not Python's own), scratch (a directory),
        bubblewrap (None: not within it), user (None: stay), landlock and seccomp (whether to use them), cpu_seconds,
        memory_mb, wall_seconds.
    """
    standard = list(sys.path)
    sys.path += settings["packages"]
    for name in settings["modules"]:
        importlib.import_module(name)
    sys.path[:] = standard
    Heap.modules = frozenset(sys.modules)
    settings["files"] = settings["bubblewrap"] is not None or confine.stay_in(settings["scratch"])
    if settings["files"] and settings["bubblewrap"] is None:
        settings["scratch"] = "/"
    if settings["user"] is not None:
        confine.drop_user(settings["user"])
    confine.hide_from_others()
    gc.collect()
    gc.freeze()
    _say({"ready": True})
    judge = socket.socket(fileno=0)
    while True:
        # One byte only: the examiner alone reads the rest.
        kind, descriptors, _, _ = socket.recv_fds(judge, 1, 3)
        if not kind:
            break
        _say(_script(settings, *descriptors) if kind == b"S" else _job(settings))
        _wipe(settings["scratch"])


def _say(message: dict) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def _job(settings: dict) -> dict:
    scratch, zygote = settings["scratch"], os.getpid()
    calls_in, calls_out = os.pipe()
    values_in, values_out = os.pipe()
    program = os.fork()
    if not program:
        _become(settings, zygote, {3: calls_in, 4: values_out}, scratch, lambda: serve(Channel(3, 4)))
    examiner = os.fork()
    if not examiner:
        _become(settings, zygote, {0: 0, 3: values_in, 4: calls_out, 5: 1}, None, _examine)
    for descriptor in (calls_in, calls_out, values_in, values_out):
        os.close(descriptor)
    stopped = _watch(examiner, (program, examiner), settings["wall_seconds"], scratch)
    ends = {}
    for name, process in (("program", program), ("examiner", examiner)):
        if name == "program" and stopped is None:
            # Its channel is closed: if it ends by itself or at a limit, its exit status is there shortly.
            _settle(process)
        os.kill(process, signal.SIGKILL)
    for name, process in (("program", program), ("examiner", examiner)):
        _, status, usage = os.wait4(process, 0)
        ends[name] = [os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime]
    return {"stopped": stopped, **ends}


def _script(settings: dict, stdin: int, stdout: int, stderr: int) -> dict:
    scratch, zygote = settings["scratch"], os.getpid()
    process = os.fork()
    if not process:
        _become(settings, zygote, {0: stdin, 1: stdout, 2: stderr}, scratch, script.run, stack=True)
    for descriptor in (stdin, stdout, stderr):
        os.close(descriptor)
    stopped = _watch(process, (process,), settings["wall_seconds"], scratch)
    os.kill(process, signal.SIGKILL)
    _, status, usage = os.wait4(process, 0)
    return {"stopped": stopped, "program": [os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime]}


def _wipe(scratch: str) -> None:
    """Empties the scratch directory for the next program, with directories where programs can make them."""
    for entry in list(os.scandir(scratch)):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry)
        else:
            Path(entry).unlink()


def _settle(process: int) -> None:
    """Waits shortly for a process that closed its channel to exit, so that its own status is seen."""
    descriptor = os.pidfd_open(process)
    select.select([descriptor], [], [], 0.002)
    os.close(descriptor)


def _watch(last: int, processes: tuple[int, ...], wall_seconds: float, scratch: str) -> str | None:
    """Waits for the last of the processes to end; otherwise returns why it stopped waiting: "asleep", "wall" or "disk".

    A job that keeps computing gets more time, since the machine may be busy: CPU time has a limit of its own.
    """
    deadline, windows, used = time.monotonic() + wall_seconds, 1, 0.0
    descriptor = os.pidfd_open(last)
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    waiting.register(0, 0)
    try:
        while True:
            for ready, event in waiting.poll(POLL_MS):
                if ready == descriptor:
                    return None
                if event & (select.POLLHUP | select.POLLERR):
                    # The judge has gone; the children end with their parent.
                    sys.exit(1)
            if time.monotonic() > deadline:
                before, used = used, sum(map(_cpu_seconds, processes))
                if used - before < ASLEEP_SHARE * wall_seconds:
                    return "asleep"
                if windows == MAX_WINDOWS:
                    return "wall"
                deadline, windows = deadline + wall_seconds, windows + 1
            if _disk_full(scratch):
                return "disk"
    finally:
        os.close(descriptor)


def _cpu_seconds(process: int) -> float:
    """CPU time of a child, also after it has ended; its clock's id is computed as `clock_getcpuclockid` does."""
    return time.clock_gettime(~process << 3 | 2)


def _disk_full(scratch: str) -> bool:
    sizes = []
    for path in Path(scratch).iterdir():
        with contextlib.suppress(FileNotFoundError):
            sizes.append(path.lstat().st_blocks * 512)
    return len(sizes) > SCRATCH_FILES or sum(sizes) > SCRATCH_BYTES


def _become(
    settings: dict,
    zygote: int,
    descriptors: dict,
    scratch: str | None,
    run: Callable[[], None],
    *,
    stack: bool = False,
) -> None:
    """Keeps only the descriptors given (new number -> old), gives up everything else, runs and ends.

    With `stack`, the process gets all the stack that it can have.
    """
    try:
        confine.end_with_parent(zygote)
        wanted = {0: _NULL, 1: _NULL, 2: _NULL, **descriptors}
        # To high numbers first, so that none overwrites another.
        for new, old in {new: fcntl.fcntl(old, fcntl.F_DUPFD, 64) for new, old in wanted.items()}.items():
            os.dup2(old, new)
        os.closerange(max(wanted) + 1, 256)
        os.chdir(scratch or "/")
        confine.limit(settings["cpu_seconds"], settings["memory_mb"])
        if stack:
            confine.raise_stack_limit()
        confine.forbid_new_privileges()
        if settings["landlock"]:
            confine.landlock(scratch)
        if settings["seccomp"]:
            confine.seccomp(files=settings["files"])
    except BaseException:
        os._exit(CONFINEMENT_FAILED)
    try:
        run()
    finally:
        os._exit(0)


def _examine() -> None:
    length = int.from_bytes(_exactly(4), "big")
    job = json.loads(_exactly(length))
    os.close(0)  # Tests that read or print reach neither the next job nor the report.
    examine(Channel(3, 4), job, 5)


def _exactly(count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = os.read(0, count - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
