"""Hosts agree where to stop, in every order in which their threads and devices may come to run.

Hosts, devices and the signal are simulated; the agreement is the real one. Its threads run one at a time, and give way
wherever they wait for others; who goes on is drawn at random, some far more often than others.
"""

import dataclasses
import random
import threading
import types
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from fusejax.distributed import agreement as agreement_module
from fusejax.distributed.agreement import Agreement, Halt, Pace, Place

PATIENCE = 30_000
"""Turns, after which somebody must be waiting for ever."""


class Turns:
    """Lets one thread run at a time."""

    def __init__(self, generator: random.Random, weights: list[int]):
        self._generator, self._weights = generator, weights
        self._waiting: dict[threading.Thread, Callable[[], bool]] = {}
        self._turn = {}
        self._back = threading.Semaphore(0)
        self.actions: list[tuple[Callable[[], bool], Callable[[], None]]] = []
        """What happens apart from the threads: when it can, and what it does."""
        self.over = False

    def wait(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Gives way to others; called by a thread of the simulation."""
        if self.over:
            raise ConnectionError
        me = threading.current_thread()
        self._turn.setdefault(me, threading.Semaphore(0))
        self._waiting[me] = ready
        self._back.release()
        self._turn[me].acquire()
        if self.over:
            raise ConnectionError

    def start(self, count: int) -> None:
        """Returns when so many threads have given way for the first time."""
        for _ in range(count):
            self._back.acquire()

    def end(self) -> None:
        """Gives way for the last time; called by a thread of the simulation."""
        self._back.release()

    def run(self, done: Callable[[], bool]) -> None:
        for number in range(PATIENCE):
            if done():
                break
            threads = [thread for thread, ready in self._waiting.items() if ready()]
            choices: list[Any] = sorted(threads, key=lambda thread: thread.name)
            choices += [action for action in self.actions if action[0]()]
            if number < PATIENCE // 2:
                weights = [self._weight(choice) for choice in choices]
                [chosen] = self._generator.choices(choices, weights)
            else:  # in turn: who hangs now would hang for ever
                chosen = choices[number % len(choices)]
            if isinstance(chosen, threading.Thread):
                self._waiting.pop(chosen)
                self._turn[chosen].release()
                self._back.acquire()
            else:
                chosen[1]()
        else:
            pytest.fail("the hosts wait for ever")

    def _weight(self, choice: Any) -> int:
        number = sum(choice.name.encode()) if isinstance(choice, threading.Thread) else 7 * self.actions.index(choice)
        return self._weights[number % len(self._weights)]

    def finish(self) -> None:
        self.over = True
        for thread in list(self._waiting):
            self._turn[thread].release()


class Board:
    def __init__(self, turns: Turns, count: int, when_all_held: Callable[[str], None]):
        self._turns, self._count, self._when_all_held = turns, count, when_all_held
        self._values: dict[str, str] = {}
        self._met: dict[str, int] = {}

    def post(self, key, value):
        self._turns.wait()
        return self._values.setdefault(key, value) is value

    def read(self, key):
        self._turns.wait(lambda: key in self._values)
        return self._values[key]

    def read_all(self, prefix):
        self._turns.wait()
        return [value for key, value in self._values.items() if key.startswith(prefix)]

    def meet(self, name):
        self._turns.wait()
        self._met[name] = arrived = self._met.get(name, 0) + 1
        time = (arrived - 1) // self._count + 1
        if name == "places" and arrived == time * self._count:
            self._when_all_held(self._values[f"asked/{time}"])
        self._turns.wait(lambda: self._met[name] >= time * self._count)


class Condition:
    def __init__(self, turns: Turns):
        self._turns = turns

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def wait_for(self, ready):
        self._turns.wait()
        self._turns.wait(ready)

    def notify_all(self):
        pass


@dataclasses.dataclass
class Result:
    host: "Host"
    number: int

    def is_ready(self) -> bool:
        return self.host.finished > self.number


class Host:
    """A run's main thread, and its device, which works through programs in order."""

    def __init__(self, index: int, run: "Run"):
        self.index, self.run = index, run
        self.dispatched: list[str] = []
        self.finished = 0
        self.saved: list[tuple[int, bool]] = []
        self.outcome: str | None = None
        self.left = False
        self.agreement = Agreement(run.board, index, leave=self.leave)
        self.agreement._changed = Condition(run.turns)

    def leave(self):
        self.left = True
        self.run.turns.end()
        raise ConnectionError  # the process is no more

    def main(self) -> None:
        """What `fusejax.training.loop.run_steps` does."""
        pace, run = Pace(self.agreement), self.run
        try:
            run.turns.wait()
            for step in range(1, run.steps + 1):
                for _ in range(run.microbatches):
                    pace.start()
                    pace.started(self.dispatch("microbatch"))
                pace.start_update()
                pace.started(self.dispatch("update"))
                due = self.agreement.save_is_due()
                if step % 2 == 0:
                    for _ in range(run.evaluations):
                        pace.start()
                        pace.started(self.dispatch("evaluate"))
                    pace.finish()
                if due or step % 2 == 0:
                    self.saved.append((step, step % 2 == 0))
                    run.board.meet("save")
            self.outcome = "done"
        except Halt:
            self.outcome = "stopped"
        except ConnectionError:
            return
        run.turns.end()

    def dispatch(self, kind: str) -> Result:
        self.run.turns.wait()
        self.dispatched.append(kind)
        return Result(self, len(self.dispatched) - 1)

    def can_finish(self) -> bool:
        """Whether the device can end its next program: those that it exchanges data with have begun it, too."""
        number = self.finished
        if number == len(self.dispatched):
            return False
        if self.run.stands_still and not self.run.ended() and self.dispatched[number] == "microbatch":
            return False
        whole = self.dispatched[number] != "microbatch"
        others = self.run.hosts if whole else [h for h in self.run.hosts if h.index in self.run.group_of(self.index)]
        return all(other.finished >= number and len(other.dispatched) > number for other in others)

    def finish(self) -> None:
        self.finished += 1


class Run:
    def __init__(self, seed, weights, count, group, steps, microbatches, evaluations, stall=False):
        self.stall, self.stands_still = stall, False
        self.steps, self.microbatches, self.evaluations, self._group = steps, microbatches, evaluations, group
        self.turns = Turns(random.Random(seed), weights)
        self.board = Board(self.turns, count, self.look)
        self.looks: list[list[int]] = []
        self.unasked = 0
        self.hosts = [Host(index, self) for index in range(count)]
        self.threads = [threading.Thread(target=host.main, name=f"main {host.index}") for host in self.hosts]
        for host in self.hosts:
            self.turns.actions.append((host.can_finish, host.finish))

    def group_of(self, index: int) -> range:
        start = index // self._group * self._group
        return range(start, start + self._group)

    def look(self, request: str) -> None:
        """How far every device is when all hosts are held; and from here on hosts can stop without any microbatch."""
        if request == "stop":
            self.looks.append([host.finished for host in self.hosts])
            self.stands_still = self.stall

    def ask(self, index: int, request: str, after: int) -> None:
        """Plans a request: it comes when so many programs were finished, over all hosts, or at the end."""

        def come():
            try:
                self.turns.wait(lambda: self.ended() or sum(host.finished for host in self.hosts) >= after)
                self.hosts[index].agreement.ask(request)
            except ConnectionError:
                return
            self.unasked -= 1
            self.turns.end()

        self.unasked += 1
        self.threads.append(threading.Thread(target=come, name=f"{request} {index}"))

    def ended(self) -> bool:
        return all(host.outcome for host in self.hosts) or all(host.left for host in self.hosts)

    def simulate(self) -> None:
        for thread in self.threads:
            thread.start()
        self.turns.start(len(self.threads) + len(self.hosts))

        def over() -> bool:
            return not self.unasked and self.ended() and not any(host.can_finish() for host in self.hosts)

        try:
            self.turns.run(over)
        finally:
            self.turns.finish()
            for thread in self.threads:
                thread.join()


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    """Waiting for a device gives way to others, as everything does."""
    clock = types.SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda seconds: GIVE_WAY[-1]())
    monkeypatch.setattr(agreement_module, "time", clock)


GIVE_WAY: list[Callable[[], None]] = []


def sequence(run: Run) -> list[str]:
    """The programs of a whole run."""
    whole = []
    for step in range(1, run.steps + 1):
        whole += ["microbatch"] * run.microbatches + ["update"] + ["evaluate"] * (run.evaluations * (step % 2 == 0))
    return whole


RUNS = {
    "seed": st.integers(0, 2**32 - 1),
    "weights": st.lists(st.sampled_from([1, 4, 40]), min_size=5, max_size=5),
    "count_and_group": st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 1), (3, 3), (4, 1), (4, 2), (4, 4)]),
    "steps": st.integers(1, 3),
    "microbatches": st.integers(1, 4),
    "evaluations": st.integers(1, 3),
}


@settings(max_examples=60, deadline=None)
@given(
    **RUNS,
    signals=st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1.1)), min_size=1, max_size=2),
    reminders=st.lists(st.floats(0, 1), max_size=4),
    stall=st.booleans(),
)
def test_all_hosts_stop_at_the_same_place_within_a_microbatch(
    seed, weights, count_and_group, steps, microbatches, evaluations, signals, reminders, stall
):
    count, group = count_and_group
    run = Run(seed, weights, count, group, steps, microbatches, evaluations, stall)
    whole = sequence(run)
    for index, share in signals:
        run.ask(index % count, "stop", after=int(share * count * len(whole)))
    for share in reminders:
        run.ask(0, "save", after=int(share * count * len(whole)))
    GIVE_WAY[:] = [run.turns.wait]
    run.simulate()

    if run.hosts[0].left:  # there was nothing to save
        assert all(host.left and "update" not in host.dispatched for host in run.hosts)
        return
    # All have started the same, and all of it ends.
    [dispatched] = {tuple(host.dispatched) for host in run.hosts}
    assert list(dispatched) == whole[: len(dispatched)]
    assert all(host.finished == len(dispatched) for host in run.hosts)
    # All saved the same on the way.
    assert len({tuple(host.saved) for host in run.hosts}) == 1
    [outcome] = {host.outcome for host in run.hosts}
    [place] = {host.agreement.place for host in run.hosts}
    assert place.updates == dispatched.count("update")
    if outcome == "stopped":
        # When the hosts knew, at most one microbatch and an update stood before the state that is saved, on each host.
        updates = [number for number, kind in enumerate(dispatched) if kind == "update"]
        for finished in run.looks[0]:
            assert dispatched[finished : updates[-1] + 1].count("microbatch") <= 1
            assert dispatched[finished : updates[-1] + 1].count("update") <= 1
    else:
        assert list(dispatched) == whole
        assert {step for step, regular in run.hosts[0].saved if regular} == set(range(2, steps + 1, 2))


@settings(max_examples=30, deadline=None)
@given(**RUNS)
def test_the_devices_always_have_a_program_queued_and_never_more(
    seed, weights, count_and_group, steps, microbatches, evaluations
):
    """Beside the one that runs; before every update, all devices are at the last microbatch."""
    count, group = count_and_group
    run = Run(seed, weights, count, group, steps, microbatches, evaluations)
    GIVE_WAY[:] = [run.turns.wait]
    most = []
    for host in run.hosts:
        dispatch = host.dispatch

        def watched(kind, host=host, dispatch=dispatch):
            result = dispatch(kind)
            most.append(len(host.dispatched) - host.finished)
            if kind == "update":
                behind = [host.dispatched[other.finished : -1] for other in run.hosts]
                assert all(rest.count("microbatch") <= 1 for rest in behind)
            return result

        host.dispatch = watched
    run.simulate()
    assert all(host.dispatched == sequence(run) for host in run.hosts)
    assert max(most) <= 2


def test_a_host_alone_stops_at_once():
    agreement, left = Agreement(leave=lambda: left.append(True)), []
    pace = Pace(agreement)
    pace.start_update()
    agreement.ask("save")
    assert not agreement.save_is_due()
    pace.start_update()
    assert agreement.save_is_due()
    assert not agreement.save_is_due()
    agreement.ask("stop")
    with pytest.raises(Halt):
        agreement.until(lambda: False)
    with pytest.raises(Halt):
        pace.start()
    assert agreement.place == Place(4, 2)
    assert not left


def test_before_the_first_update_there_is_nothing_to_save():
    left = []
    agreement = Agreement(leave=lambda: left.append(True))
    agreement.start()
    agreement.ask("stop")
    assert left == [True]
