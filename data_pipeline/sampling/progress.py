"""How far sampling is, in lines on stderr: several sources may report at the same time, to a terminal or a log."""

import time

from fusejax.common.cli import note
from fusejax.common.progress import INTERVAL, clock


class Progress:
    """Counts the answers of one step and reports now and then; the rate is this run's, without answers kept before."""

    def __init__(self, step: str, done: int, total: int):
        self._step, self._done, self._total = step, done, total
        self._new = self._tokens = 0
        self._start = self._told = time.monotonic()

    def add(self, answers: int, tokens: int) -> None:
        self._new += answers
        self._tokens += tokens
        now = time.monotonic()
        if now - self._told >= INTERVAL:
            self._told = now
            note(line(self._step, self._done, self._new, self._total, self._tokens, now - self._start))


def line(step: str, done: int, new: int, total: int, tokens: int, seconds: float) -> str:
    """The reported line: answers, rate, and the time left at that rate.

    >>> line("sample s", 100, 50, 250, 6000, 60.0)
    'sample s: 150 of 250 answers, 100 tokens/s, 0:02:00 left'
    """
    left = seconds / new * (total - done - new) if new else 0
    return f"{step}: {done + new:,} of {total:,} answers, {tokens / seconds:,.0f} tokens/s, {clock(left)} left"
