"""Worker processes with a hard time limit, for functions that hang, eat memory or crash."""

import contextlib
import multiprocessing
import os
import resource
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

OUT_OF_MEMORY = "out_of_memory"
START_SECONDS = 120.0
"""Time for a worker to import what it needs."""


class WorkerPool:
    """Maps a function over tasks in processes; a task that takes too long is given up and its process killed.

    Args:
      function: importable by name; its module is imported once in a server process from which workers fork.
      timeout: seconds per task.
      memory_mb: address space that a worker may add to what it starts with; beyond it the function gets a MemoryError.
      workers: processes. Default: one per core.
    """

    def __init__(self, function: Callable[[Any], Any], *, timeout: float, memory_mb: int, workers: int | None = None):
        self._function, self._timeout, self._memory = function, timeout, memory_mb
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([function.__module__])
        self._size = workers or os.cpu_count() or 1
        self._workers: dict[Connection, BaseProcess] = {}

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        for connection in list(self._workers):
            self._stop(connection)

    def map(self, tasks: Sequence[Any]) -> list[Any]:
        """Results in order; "timeout", "crashed" or "out_of_memory" in place of a missing one, so the function should
        not return strings. The process of such a task is killed, and another takes its place.

        Raises:
          RuntimeError: a new process dies or hangs before its first task.
        """
        results: list[Any] = ["crashed"] * len(tasks)
        waiting = deque(enumerate(tasks))
        running: dict[Connection, tuple[int | None, float]] = {}  # Task (None: starting) and deadline of each worker.

        def replace(connection: Connection, index: int | None) -> None:
            self._stop(connection)
            if index is None:
                raise RuntimeError("a worker process could not start")
            if waiting:
                running[self._start()] = None, time.monotonic() + START_SECONDS

        for _ in range(min(self._size, len(tasks))):
            running[self._start()] = None, time.monotonic() + START_SECONDS
        while running:
            soonest = min(deadline for _, deadline in running.values())
            for connection in wait(list(running), timeout=max(0.0, soonest - time.monotonic())):
                assert isinstance(connection, Connection)
                index, _ = running.pop(connection)
                try:
                    result = connection.recv()
                except (EOFError, OSError):  # The process died: its task keeps "crashed".
                    replace(connection, index)
                    continue
                if index is not None:
                    results[index] = result
                if result == OUT_OF_MEMORY:  # It may not release what it holds.
                    replace(connection, index)
                    continue
                if not waiting:
                    self._stop(connection)
                    continue
                following, task = waiting.popleft()
                try:
                    connection.send(task)
                except OSError:  # It died idle.
                    waiting.appendleft((following, task))
                    replace(connection, following)
                    continue
                running[connection] = following, time.monotonic() + self._timeout
            for connection, (index, deadline) in list(running.items()):
                if time.monotonic() >= deadline:
                    del running[connection]
                    if index is not None:
                        results[index] = "timeout"
                    replace(connection, index)
        return results

    def _start(self) -> Connection:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(self._function, self._memory, self._timeout, theirs), daemon=True
        )
        process.start()
        theirs.close()
        self._workers[ours] = process
        return ours

    def _stop(self, connection: Connection) -> None:
        process = self._workers.pop(connection)
        process.kill()
        process.join()
        connection.close()


def _work(function: Callable[[Any], Any], memory_mb: int, timeout: float, connection: Connection) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        connection.send(None)  # Ready.
        while True:
            task = connection.recv()
            # If the pool's process dies, nothing else ends a task that hangs.
            spent = resource.getrusage(resource.RUSAGE_SELF)
            allowed = int(spent.ru_utime + spent.ru_stime + timeout) + 5
            resource.setrlimit(resource.RLIMIT_CPU, (allowed, resource.RLIM_INFINITY))
            try:
                connection.send(function(task))
            except MemoryError:
                connection.send(OUT_OF_MEMORY)
