"""Where the wall time of a run goes."""

import re
from types import SimpleNamespace

import pytest

from fusejax.training import goodput
from fusejax.training.goodput import Clock
from fusejax.training.loop import train
from tests.tiny_runs import run_config


@pytest.fixture
def now(monkeypatch) -> SimpleNamespace:
    now = SimpleNamespace(value=100.0)
    monkeypatch.setattr(goodput.time, "monotonic", lambda: now.value)
    return now


def test_every_moment_belongs_to_the_innermost_phase(now):
    clock = Clock(began=97.0)
    now.value += 1
    with clock.phase("steps"):
        now.value += 10
        with pytest.raises(OSError), clock.phase("checkpoints"):
            now.value += 4
            raise OSError
        now.value += 20
        with clock.phase("checkpoints"):
            now.value += 2
    now.value += 3
    assert clock.seconds() == {"starting": 7, "steps": 30, "checkpoints": 6}
    assert clock.goodput() == 30 / 43
    assert clock.summary() == "goodput 69.8% of 43.0 s: starting 7.0, steps 30.0, checkpoints 6.0"


def test_a_phase_that_goes_on_counts(now):
    clock = Clock()
    assert clock.goodput() == 0
    with clock.phase("steps"):
        now.value += 5
        assert (clock.goodput(), clock.seconds()) == (1, {"starting": 0, "steps": 5})
        now.value += 5
    now.value += 30
    assert clock.goodput() == 0.25


def test_a_run_says_where_its_time_went(world, tmp_path, capsys):
    train(run_config(world, tmp_path / "run", "dpo", max_steps=1))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("goodput")]
    head, *phases = line.split(": ")
    assert re.fullmatch(r"goodput \d+\.\d% of [\d,]+\.\d s", head)
    found = {phase.split()[0] for phase in phases[0].split(", ")}
    assert {"starting", "reference", "evaluation", "steps"} <= found
    assert found <= {"starting", "tokens", "loading", "compiling", "reference", "steps", "evaluation", "checkpoints"}
