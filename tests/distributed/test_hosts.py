"""Hosts find each other, agree, and end together, whichever of them ends and however."""

import signal
import sys
import time
from pathlib import Path

import pytest

from fusejax.common.cli import UserError
from fusejax.distributed.agreement import Halt
from fusejax.distributed.hosts import HOST_LOST, STOPPED, Hosts, join
from tests.distributed.processes import Processes, free_port

SCENES = Path(__file__).parent / "scenes.py"


def act(scene: str, folder: Path, count: int = 3) -> Processes:
    port = free_port()
    commands = [[sys.executable, str(SCENES), scene, str(port), str(count), str(i)] for i in range(count)]
    return Processes(commands, folder, environment={"PYTHONPATH": str(SCENES.parents[2])})


def wait_for(hosts: Processes, text: str) -> None:
    deadline = time.monotonic() + 120
    while not all(text in hosts.output(i) for i in range(len(hosts.files))):
        assert time.monotonic() < deadline, [hosts.output(i) for i in range(len(hosts.files))]
        time.sleep(0.1)


def test_host_0_leads(tmp_path):
    with act("agree", tmp_path) as hosts:
        assert hosts.wait() == [0, 0, 0]
        for i in range(3):
            assert "{'value': 'second', 'from': 0}" in hosts.output(i)


def test_the_hosts_of_a_tpu_pod_find_each_other(tmp_path):
    """By what GKE says in the environment; that there are TPUs is pretended."""
    commands = [["env", f"TPU_WORKER_ID={i}", sys.executable, str(SCENES), "agree"] for i in range(2)]
    environment = {
        "PYTHONPATH": str(SCENES.parents[2]),
        "JAX_PLATFORMS": "",
        "JAX_FORCE_TPU_INIT": "1",
        "TPU_WORKER_HOSTNAMES": "localhost,localhost",
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost",  # this and the next two so that no metadata server is asked
        "MEGASCALE_NUM_SLICES": "1",
        "MEGASCALE_SLICE_ID": "0",
        "JAX_COORDINATOR_PORT": str(free_port()),
    }
    with Processes(commands, tmp_path, environment=environment) as hosts:
        assert hosts.wait() == [0, 0], [hosts.output(i) for i in range(2)]
        assert "{'value': 'second', 'from': 0}" in hosts.output(1)


@pytest.mark.parametrize(
    ("scene", "status", "culprit", "text"),
    [
        ("disagree", 2, 2, "the number of fingers on host 2 differs from host 0's"),
        ("mistake", 2, 2, "data.train there/is/none: no such folder"),
        ("bug", 1, 0, "ZeroDivisionError: a bug"),
    ],
)
def test_what_one_host_finds_ends_all(tmp_path, scene, status, culprit, text):
    with act(scene, tmp_path) as hosts:
        assert hosts.wait() == [status] * 3
        expected = [f"error: host {culprit}: {text}"] * 3
        expected[culprit] = f"error: {text}"
        assert hosts.errors() == expected
        assert ("Traceback" in hosts.output(culprit)) == (scene == "bug")


@pytest.mark.parametrize("victim", [0, 2])
def test_a_dead_host_takes_the_others_along(tmp_path, victim):
    with act("step_forever", tmp_path) as hosts:
        wait_for(hosts, "started")
        hosts.send(victim, signal.SIGKILL)
        expected = [HOST_LOST] * 3
        expected[victim] = -signal.SIGKILL
        start = time.monotonic()
        assert hosts.wait(90) == expected
        assert time.monotonic() - start < 60
        for i in {0, 1, 2} - {victim}:
            assert hosts.errors()[i].startswith(f"error: host {victim} (")
            assert "died or cannot be reached" in hosts.errors()[i]


@pytest.mark.parametrize("missing", [0, 2])
def test_hosts_that_never_meet_say_so(tmp_path, missing):
    with act("meet", tmp_path) as hosts:
        hosts.send(missing, signal.SIGKILL)
        expected = [HOST_LOST] * 3
        expected[missing] = -signal.SIGKILL
        assert hosts.wait(90) == expected
        for i in {0, 1, 2} - {missing}:
            last = hosts.output(i).splitlines()[-1]
            assert last.startswith("error: --coordinator 127.0.0.1:")
            assert last.endswith(": the hosts did not find each other in 5 s; did all start?")


def test_sigterm_stops_all_after_the_same_step(tmp_path):
    with act("step_forever", tmp_path) as hosts:
        wait_for(hosts, "started")
        for i in (1, 2):
            hosts.send(i, signal.SIGTERM)
        assert hosts.wait() == [STOPPED] * 3
        assert hosts.errors()[0].startswith("stopped after step ")
        assert len(set(hosts.errors())) == 1


def test_sigterm_before_the_first_step_stops_all_at_once(tmp_path):
    with act("slow_start", tmp_path) as hosts:
        wait_for(hosts, "started")
        start = time.monotonic()
        hosts.send(1, signal.SIGTERM)
        assert hosts.wait() == [STOPPED] * 3
        assert time.monotonic() - start < 20
        assert all("stopped by SIGTERM before the first step" in line for line in hosts.errors())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1", 2, None), "--coordinator, --num-hosts and --host-index are given together"),
        ((None, 2, 0), "--coordinator, --num-hosts and --host-index are given together"),
        (("localhost:1", 2, 2), "--host-index 2: with --num-hosts 2 it is from 0 to 1"),
        (("localhost", 2, 1), "--coordinator localhost: expected HOST:PORT"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(UserError, match=message), join(*arguments):
        pass


def test_one_host_alone():
    hosts = Hosts()
    assert hosts.lead(lambda: "mine") == "mine"
    hosts.same("anything", "at all")
    hosts.agreement.start(update=True)
    hosts.sigterm()
    with pytest.raises(Halt):
        hosts.agreement.start()
