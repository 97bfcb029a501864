"""A run's large programs, compiled in a thread while the data are tokenised and the weights loaded.

XLA lets other threads go on while it compiles. Every host compiles for itself and waits for no other, so hosts may be
at it at different times.
"""

import functools
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from fusejax.training.goodput import Clock
from fusejax.training.programs import Programs


class Ahead:
    """Compiles programs one after another, and puts what comes out into their place.

    Args:
      programs: of the run.
      clock: gets the time that a call waits for its program as `compiling`.
    """

    def __init__(self, programs: Programs, clock: Clock):
        self._programs, self._clock = programs, clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._compiled: dict[str, Future[jax.stages.Compiled]] = {}

    def compile(self, *names: str) -> None:
        """Begins to compile these programs, but for those that are begun; to be called before they are used."""
        for name in names:
            if name not in self._compiled:
                program, arguments = getattr(self._programs, name), self._programs.arguments(name)
                future = self._thread.submit(lambda f, shapes: f.lower(*shapes).compile(), program, arguments)
                self._compiled[name] = future
                setattr(self._programs, name, functools.partial(self._call, future))

    def _call(self, compiled: Future[jax.stages.Compiled], *arguments: Any) -> Any:
        if not compiled.done():
            with self._clock.phase("compiling"):
                compiled.result()
        return compiled.result()(*arguments)

    def is_busy(self) -> bool:
        return not all(future.done() for future in self._compiled.values())

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_: object) -> None:
        # What XLA is at cannot be interrupted.
        self._thread.shutdown(wait=False, cancel_futures=True)
