"""How far a loop is, told in a log file by whole lines and on a terminal by a bar."""

import doctest
import io
import os
import pty
import subprocess
import sys
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusejax.common import progress
from fusejax.common.progress import Progress, clock


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_examples():
    assert doctest.testmod(progress).failed == 0


@given(st.integers(0, 10**6))
def test_clock(seconds: int):
    hours, minutes, rest = map(int, clock(seconds).split(":"))
    assert hours * 3600 + minutes * 60 + rest == seconds
    assert max(minutes, rest) < 60


def test_lines_in_a_log(time, capsys):
    with Progress("score a", 100, "answer", done=20) as bar:
        for _ in range(60):
            time.now += 1
            bar.add(text="loss 1")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"score a: {20 + n} of 100 answers, loss 1, 0:{(80 - n) // 60:02}:{(80 - n) % 60:02} left"
                     for n in range(10, 70, 10)]  # fmt: skip


def test_the_last_line_is_told_in_any_case(time, capsys):
    with Progress("reference, eval", 3, "pair") as bar:
        time.now += 2
        bar.add(3)
    assert capsys.readouterr().err == "reference, eval: 3 of 3 pairs in 0:00:02\n"


def test_a_log_of_days_stays_readable(time, capsys):
    with Progress("sft", 300_000, "step") as bar:
        for _ in range(300_000):
            time.now += 1
            bar.add()
    lines = capsys.readouterr().err.splitlines()
    assert 500 < len(lines) < 800
    assert lines[-1] == "sft: 300,000 of 300,000 steps in 83:20:00"


def test_quiet_and_without_anything_to_tell(time, capsys):
    with Progress("sft", 3, "step", quiet=True) as bar:
        time.now += 100
        bar.add(3)
    with Progress("sft", 3, "step", done=3):
        time.now += 100
    with Progress("sft", 3, "step") as bar:
        time.now += 100
        bar.add(0)
    assert capsys.readouterr().err == ""


PROGRAM = """
from fusejax.common.progress import Progress
with Progress("sft", 3, "step") as bar:
    for _ in range(3):
        bar.add(text="loss 1")
"""


def test_a_bar_on_a_terminal_and_none_in_a_file(tmp_path):
    with (tmp_path / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", PROGRAM], stderr=log, check=True)
    assert (tmp_path / "log").read_text() == "sft: 3 of 3 steps, loss 1 in 0:00:00\n"

    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    subprocess.run([sys.executable, "-c", PROGRAM], stderr=theirs, check=True)
    os.close(theirs)
    shown = io.BytesIO()
    while True:
        try:
            shown.write(os.read(ours, 4096))
        except OSError:  # the other end is closed
            break
    assert all(part in shown.getvalue() for part in (b"\r", b"3/3", b"loss 1"))
