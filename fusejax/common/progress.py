"""Progress of long work: a bar on a terminal; elsewhere, such as in a log file, a line now and then."""

import sys
import time

from tqdm import tqdm

from fusejax.common.cli import note

INTERVAL = 10.0
"""Minimum seconds between lines, or a hundredth of the time so far if that is more, so that long logs stay readable."""


class Progress:
    """Counts to `total`.

    Args:
      title: what is done.
      unit: what is counted, in the singular.
      done: how many were done before; they do not count in the estimate of the time left.
      quiet: prints nothing; set on all hosts but one.
    """

    def __init__(self, title: str, total: int, unit: str, *, done: int = 0, quiet: bool = False):
        self._title, self._total, self._unit, self._before = title, total, unit, done
        self._done = self._told_at = done
        self._text = ""
        self._start = self._told = time.monotonic()
        self._quiet = quiet
        self._bar = None
        if not quiet and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, desc=title, unit=unit, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def add(self, count: int = 1, text: str = "") -> None:
        """Counts `count` more as done, and shows this, with the latest figures `text`, if a line is due."""
        self._done += count
        self._text = text
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(count)
        elif self._done > self._told_at:
            now = time.monotonic()
            if now - self._told >= max(INTERVAL, (now - self._start) / 100):
                self._tell(now)

    def close(self) -> None:
        """Ends the bar, or tells where it ended."""
        if self._bar is not None:
            self._bar.close()
        elif self._done > self._told_at:
            self._tell(time.monotonic())

    def _tell(self, now: float) -> None:
        if not self._quiet:
            seconds = now - self._start
            rate = (self._done - self._before) / seconds if seconds else 0
            note(line(self._title, self._done, self._total, self._unit, self._text, seconds, rate))
        self._told, self._told_at = now, self._done


def line(title: str, done: int, total: int, unit: str, text: str, seconds: float, rate: float) -> str:
    """The line to print, with the time left at `rate` per second or, at the end, the `seconds` that it took.

    >>> line("sft", 1200, 4000, "step", "loss 1.2345", 1000.0, 0.35)
    'sft: 1,200 of 4,000 steps, loss 1.2345, 2:13:20 left'
    >>> line("generate", 64, 64, "answer", "", 100.0, 0.64)
    'generate: 64 of 64 answers in 0:01:40'
    """
    end = f" in {clock(seconds)}" if done >= total or not rate else f", {clock((total - done) / rate)} left"
    return f"{title}: {done:,} of {total:,} {unit}s{f', {text}' if text else ''}{end}"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock(3723.4)
    '1:02:03'
    """
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
