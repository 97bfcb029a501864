"""Where the wall time of a run went, and the share of it that was spent in steps: its goodput."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Every moment of an attempt at a run belongs to one phase: the innermost that is open, or else `starting`.

    For one thread.

    Args:
      began: when the attempt began, by `time.monotonic`; by default now.
    """

    def __init__(self, began: float | None = None):
        self._began = self._since = time.monotonic() if began is None else began
        self._phase = "starting"
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, phase: str) -> str:
        """Begins `phase` and returns the one before."""
        now, before = time.monotonic(), self._phase
        self._seconds[before] = self._seconds.get(before, 0.0) + now - self._since
        self._phase, self._since = phase, now
        return before

    def seconds(self) -> dict[str, float]:
        """Of each phase so far, in the order in which they were first left."""
        self._switch(self._phase)
        return dict(self._seconds)

    def goodput(self) -> float:
        """The share of the phase `steps`, from 0 to 1."""
        seconds = self.seconds()
        return seconds.get("steps", 0.0) / sum(seconds.values()) if sum(seconds.values()) else 0.0

    def summary(self) -> str:
        """One line: the goodput, and the seconds of each phase."""
        seconds = self.seconds()
        phases = ", ".join(f"{name} {value:,.1f}" for name, value in seconds.items())
        return f"goodput {self.goodput():.1%} of {sum(seconds.values()):,.1f} s: {phases}"
