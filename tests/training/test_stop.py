"""A run stopped at any program saves the last whole step; the next attempt ends as if nothing had happened."""

import numpy as np
import pytest

from fusejax.distributed.agreement import Pace
from fusejax.distributed.hosts import Hosts, Stopped
from fusejax.training.checkpoints import Checkpoints, complete_steps
from fusejax.training.loop import train
from tests.tiny_runs import run_config
from tests.training.test_resume import final_arrays, logged

CHANGES = {"max_steps": 4, "checkpoint": {"every_steps": 2, "keep": 2}, "packing": {"row_length": 64}}


@pytest.fixture(scope="module")
def unbroken(world, tmp_path_factory):
    output = tmp_path_factory.mktemp("unbroken") / "run"
    programs = []
    start, start_update = Pace.start, Pace.start_update
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pace, "start", lambda self: (start(self), programs.append("microbatch")))
        patch.setattr(Pace, "start_update", lambda self: (start_update(self), programs.append("update")))
        train(run_config(world, output, **CHANGES))
    return output, programs


def interrupted(world, output, patch, number: int, request: str) -> None:
    """Runs with a request that comes just before a program is started, counted from 0."""
    hosts, count = Hosts(), iter(range(10_000))

    def before(start):
        def asks(self):
            if next(count) == number:
                hosts.agreement.ask(request)
            start(self)

        return asks

    with patch.context() as patched:
        patched.setattr(Pace, "start", before(Pace.start))
        patched.setattr(Pace, "start_update", before(Pace.start_update))
        train(run_config(world, output, **CHANGES), hosts)


def check_same(output, unbroken) -> None:
    ours, theirs = final_arrays(output), final_arrays(unbroken)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)
    assert logged(output) == logged(unbroken)
    assert complete_steps(output) == complete_steps(unbroken)
    with Checkpoints(output) as mine, Checkpoints(unbroken) as other:
        assert mine.metrics() == other.metrics()


# By updates before it, and how many programs after the update.
@pytest.mark.parametrize(
    ("updates", "after", "evaluated"),
    [
        (1, 1, True),  # in the next step
        (2, 0, False),  # in an evaluation
        (4, 0, False),  # in the last one
    ],
)
def test_the_step_or_evaluation_under_way_is_taken_again(
    world, unbroken, tmp_path, monkeypatch, updates, after, evaluated
):
    whole, programs = unbroken
    at = [number for number, kind in enumerate(programs) if kind == "update"][updates - 1] + 1 + after
    run = tmp_path / "run"
    with pytest.raises(Stopped, match=f"stopped by SIGTERM after step {updates} of 4; the same command goes on"):
        interrupted(world, run, monkeypatch, at, "stop")
    assert complete_steps(run)[-1] == updates
    # A step whose evaluation is yet to come is not logged either.
    assert [line["step"] for line in logged(run)] == list(range(1, updates + evaluated))
    with Checkpoints(run) as checkpoints:
        assert bool(checkpoints.unevaluated()) != evaluated
        assert checkpoints.best_step() in complete_steps(run)
    train(run_config(world, run, **CHANGES))
    check_same(run, whole)


def test_a_save_between_regular_ones_leaves_no_trace(world, unbroken, tmp_path, monkeypatch):
    whole, _ = unbroken
    saved = []
    save = Checkpoints.save
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, state, *args: (saved.append(int(state.step)), save(self, state, *args))
    )
    interrupted(world, tmp_path / "run", monkeypatch, 1, "save")  # within the first step
    assert saved == [1, 2, 4]
    check_same(tmp_path / "run", whole)


def test_the_clock_asks_for_a_save(world, unbroken, tmp_path):
    """A tiny part of a minute passes in every step; the key may differ between attempts."""
    whole, _ = unbroken
    config = run_config(world, tmp_path / "run", **CHANGES)
    clock = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"every_minutes": 1e-6})})
    hosts, asked = Hosts(), []
    ask = hosts.agreement.ask
    hosts.agreement.ask = lambda request: (asked.append(request), ask(request))
    train(clock, hosts)
    assert "save" in asked
    check_same(tmp_path / "run", whole)
    train(config)
