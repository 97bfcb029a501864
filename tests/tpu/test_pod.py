"""`tpu/pod.sh` from queueing to deletion, and through every way that Google Cloud and a training run fail."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fusejax.distributed.hosts import STOPPED
from tests.tpu.conftest import REPOSITORY, Pod

TRAIN = ("train", "configs/run.yaml", "optimizer.learning_rate=1e-6", "name=two words")
RUN = "-m fusejax.train --config configs/run.yaml optimizer.learning_rate=1e-6 name=two words"
CREATE = "queued-resources create"
DESCRIBE = "queued-resources describe"
DELETE = "queued-resources delete"


def http_error(code: int, status: str, message: str) -> dict[str, object]:
    """A failure as gcloud prints it."""
    return {"status": 1, "stderr": f"ERROR: (gcloud.compute.tpus) HttpError {code}: {status}: {message}"}


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within a minute"
        time.sleep(0.05)


def test_scripts_pass_shellcheck() -> None:
    scripts = sorted((REPOSITORY / "tpu").glob("*.sh"))
    shellcheck = Path(sys.executable).with_name("shellcheck")
    subprocess.run([shellcheck, *scripts], check=True)
    assert [script.name for script in scripts] == ["pod.sh", "worker.sh"]


def test_train_does_everything_and_leaves_nothing(pod: Pod) -> None:
    status, output = pod.run(*TRAIN)
    assert status == 0, output
    (create,) = pod.calls(CREATE)
    for flag in ("--accelerator-type=v5p-16", "--runtime-version=v2-alpha-tpuv5", "--node-id=fusejax", "--spot"):
        assert flag in create.split()
    assert sorted(pod.runs()) == [f"fusejax-w0: {RUN}", f"fusejax-w1: {RUN}"]
    assert "last words of fusejax-w0" in output, "worker 0's log is streamed, to its end"
    assert "last words of fusejax-w1" not in output
    assert [line for line in output.splitlines() if "run 1 in" in line], "and from its beginning"
    assert pod.resource() is None


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        (
            {"TOPOLOGY": "v5e-16", "WAIT_HOURS": "3"},
            ["--valid-until-duration=3h", "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"],
        ),
        ({"TOPOLOGY": "v4-32"}, ["--accelerator-type=v4-32", "--runtime-version=tpu-ubuntu2204-base"]),
        (
            {"TOPOLOGY": "V5LitePod-8"},
            ["--accelerator-type=v5litepod-8", "--runtime-version=v2-alpha-tpuv5-lite"],
        ),
        ({"TOPOLOGY": "v6e-64", "CAPACITY": "reserved"}, ["--runtime-version=v2-alpha-tpuv6e", "--reserved"]),
        (
            {"TOPOLOGY": "2xv5p-16", "NAME": "n", "RUNTIME": "other", "SERVICE_ACCOUNT": "a@b"},
            ["--node-count=2", "--node-prefix=n", "--runtime-version=other", "--service-account=a@b"],
        ),
    ],
)
def test_settings_reach_the_request(pod: Pod, settings: dict[str, str], flags: list[str]) -> None:
    status, output = pod.run("up", **settings)
    assert status == 0, output
    assert set(flags) <= set(pod.calls(CREATE)[0].split())


def test_on_demand_asks_for_neither_spot_nor_reservation(pod: Pod) -> None:
    assert pod.run("up", CAPACITY="on-demand")[0] == 0
    assert not {"--spot", "--reserved"} & set(pod.calls(CREATE)[0].split())


def test_all_workers_of_all_slices_run(pod: Pod) -> None:
    status, output = pod.run(*TRAIN, TOPOLOGY="2xv5p-16")
    assert status == 0, output
    assert sorted(pod.runs()) == [f"fusejax-{node}-w{worker}: {RUN}" for node in (0, 1) for worker in (0, 1)]
    assert "last words of fusejax-0-w0" in output
    assert "last words of fusejax-1-w0" not in output


def test_passing_faults_are_waited_out(pod: Pod) -> None:
    faults = {
        CREATE: http_error(503, "UNAVAILABLE", "The service is currently unavailable."),
        DESCRIBE: http_error(500, "INTERNAL", "Internal error. Please try again or contact Google Support."),
        "tpu-vm describe": http_error(429, "RESOURCE_EXHAUSTED", "Quota exceeded for 'Read requests' and 'per minute'"),
        DELETE: {"status": 1, "stderr": "ERROR: gcloud crashed (ConnectionError): Connection reset by peer"},
    }
    pod.plan(faults=[{"on": call, "times": 3, **failure} for call, failure in faults.items()])
    status, output = pod.run(*TRAIN)
    assert status == 0, output
    assert [len(pod.calls(call)) for call in (CREATE, DELETE)] == [4, 4]
    assert pod.resource() is None


def test_lasting_faults_end_with_what_gcloud_said(pod: Pod) -> None:
    pod.plan(faults=[{"on": CREATE, "times": 99, **http_error(503, "UNAVAILABLE", "not today")}])
    status, output = pod.run(*TRAIN)
    assert status == 1
    assert "gcloud failed 4 times in a row" in output
    assert "not today" in output


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (
            http_error(429, "RESOURCE_EXHAUSTED", "Quota limit 'TPUV5PPreemptible' has been exceeded. Limit: 0"),
            "No quota for spot v5p-16 in here-1a",
        ),
        (http_error(403, "PERMISSION_DENIED", "Permission 'tpu.nodes.create' denied"), "Google Cloud refuses"),
        (http_error(403, "SERVICE_DISABLED", "Cloud TPU API has not been used in project"), "Google Cloud refuses"),
        (http_error(400, "INVALID_ARGUMENT", "Accelerator type not found"), "does not take this request"),
    ],
)
def test_what_only_the_user_can_mend_ends_at_once(pod: Pod, failure: dict[str, object], message: str) -> None:
    pod.plan(faults=[{"on": CREATE, "times": 99, **failure}])
    status, output = pod.run(*TRAIN)
    assert status == 1
    assert message in output
    assert str(failure["stderr"]) in output
    assert len(pod.calls(CREATE)) == 1


def test_the_wrong_project_is_refused_before_anything_is_made(pod: Pod) -> None:
    status, output = pod.run(*TRAIN, PROJECT="other")
    assert status == 1
    assert "The caller does not have permission" in output
    assert pod.calls(CREATE) == []


def test_describe_may_lag_behind_create(pod: Pod) -> None:
    # The first look is before the request; the next two do not see it yet, so it is asked for again, and exists.
    pod.plan(faults=[{"on": DESCRIBE, "times": 3, **http_error(404, "NOT_FOUND", "was not found")}])
    status, output = pod.run("up")
    assert status == 0, output
    assert len(pod.calls(CREATE)) == 3
    resource = pod.resource()
    assert resource is not None
    assert resource["life"] == 0


def test_what_exists_is_taken(pod: Pod) -> None:
    assert pod.run("up")[0] == 0
    assert pod.run(*TRAIN)[0] == 0
    assert len(pod.calls(CREATE)) == 1


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (("b.yaml",), {}, "another command is running: fusejax.train --config a.yaml: choose another NAME"),
        (("a.yaml",), {"TOPOLOGY": "v6e-16"}, "fusejax exists as v5p-16, not v6e-16: choose another NAME"),
    ],
)
def test_what_is_anothers_is_left_alone(
    pod: Pod, arguments: tuple[str, ...], settings: dict[str, str], message: str
) -> None:
    pod.script("hang")
    process = pod.start("train", "a.yaml")
    eventually(lambda: len(pod.runs()) == 2)
    status, output = pod.run("train", *arguments, **settings)
    assert status == 1
    assert message in output
    assert len(pod.runs()) == 2
    assert pod.calls(DELETE) == []
    assert not (pod.root / "saved").exists(), "nobody stopped it"
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=180)


def test_a_failed_request_is_made_again(pod: Pod) -> None:
    pod.plan(lives=[{"states": ["WAITING_FOR_RESOURCES", "FAILED"]}, {}])
    status, output = pod.run(*TRAIN)
    assert status == 0, output
    assert "The TPU could not be created before the deadline. Asking again" in output
    assert len(pod.calls(CREATE)) == 2


def test_a_request_that_keeps_failing_ends_with_the_reason(pod: Pod) -> None:
    pod.plan(lives=[{"states": ["FAILED"]}])
    status, output = pod.run(*TRAIN)
    assert status == 1
    assert "The request for v5p-16 failed 3 times: The TPU could not be created" in output
    assert pod.resource() is None


def test_queueing_has_an_end(pod: Pod) -> None:
    pod.plan(lives=[{"states": ["WAITING_FOR_RESOURCES"]}])
    status, output = pod.run(*TRAIN, WAIT_HOURS="0")
    assert status == 1
    assert "No v5p-16 within 0 hours" in output
    assert pod.resource() is None


def test_fresh_workers_refuse_ssh_for_a_while(pod: Pod) -> None:
    refusal = {"status": 255, "stderr": "Permission denied (publickey)."}
    pod.plan(faults=[{"on": "tpu-vm ssh", "times": 2, **refusal}, {"on": "tpu-vm scp", "times": 1, **refusal}])
    status, output = pod.run(*TRAIN)
    assert status == 0, output
    assert "Permission denied (publickey)" in output
    assert len(pod.runs()) == 2


def test_a_connection_lost_while_starting_starts_nothing_twice(pod: Pod) -> None:
    pod.script("hang", "exit 0")
    pod.plan(faults=[{"on": "tpu-vm ssh", "with": "worker.sh start", "times": 2, "drop": True}])
    process = pod.start(*TRAIN)
    eventually(lambda: len(pod.calls("tpu-vm ssh fusejax")) > 8)
    assert len(pod.runs()) == 2
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=180)


def test_lost_connections_while_training_lose_no_log(pod: Pod) -> None:
    broken = {"status": 255, "stderr": "Connection closed by remote host"}
    pod.plan(
        faults=[{"on": "tpu-vm ssh", "with": f"worker.sh {call}", "times": 3, **broken} for call in ("status", "log")]
    )
    status, output = pod.run(*TRAIN)
    assert status == 0, output
    assert output.count("run 1 in") == output.count("last words of fusejax-w0") == 1


@pytest.mark.parametrize("how", ["SUSPENDED", "PREEMPTED"])
def test_a_preempted_slice_is_replaced_until_the_run_is_done(pod: Pod, how: str) -> None:
    pod.script("hang", "hang", "exit 0")
    pod.plan(lives=[{"end": {"after": 3, "as": how}}, {"end": {"after": 3, "as": how}}, {}])
    status, output = pod.run(*TRAIN, MAX_CRASHES="0")
    assert status == 0, output
    assert len(pod.calls(CREATE)) == 3
    assert pod.runs().count(f"fusejax-w1: {RUN}") == 3, "the same command each time"
    assert output.count("fusejax is gone") == 2
    assert "last words of fusejax-w0" in output, "the log of the new worker 0 is streamed from its beginning"
    assert pod.resource() is None


def test_a_slice_preempted_before_anything_runs_is_replaced(pod: Pod) -> None:
    pod.plan(lives=[{"states": ["ACTIVE", "SUSPENDING", "SUSPENDING", "SUSPENDING", "SUSPENDED"]}, {}])
    pod.plan(faults=[{"on": "tpu-vm scp", "times": 1, "status": 255, "stderr": "Connection timed out"}])
    status, output = pod.run(*TRAIN)
    assert status == 0, output
    assert len(pod.calls(CREATE)) == 2
    assert len(pod.calls(DELETE)) > 2, "while it is SUSPENDING it cannot be deleted"


def test_an_interrupted_run_that_saved_goes_on_without_being_counted(pod: Pod) -> None:
    pod.script(f"exit {STOPPED}", f"exit {STOPPED}", "exit 0")
    status, output = pod.run(*TRAIN, MAX_CRASHES="0")
    assert status == 0, output
    assert output.count("Interrupted, and saved") == 2
    assert len(pod.calls(CREATE)) == 1, "the slice is still there"
    assert len(pod.calls("tpu-vm scp")) == 3


def test_a_run_that_saved_before_its_slice_went_goes_on_elsewhere(pod: Pod) -> None:
    pod.script(f"exit {STOPPED}", "exit 0")
    pod.plan(lives=[{"states": ["ACTIVE", "SUSPENDING", "SUSPENDED"]}, {}])
    status, output = pod.run(*TRAIN, MAX_CRASHES="0")
    assert status == 0, output
    assert len(pod.calls(CREATE)) == 2
    assert "run 2 in" in output, "the log of the new worker 0 is streamed from its beginning"


def test_a_crash_is_restarted_a_few_times(pod: Pod) -> None:
    pod.script("exit 1", "exit 139", "exit 0")
    status, output = pod.run(*TRAIN, MAX_CRASHES="2")
    assert status == 0, output
    assert "restart 2 of 2" in output
    assert "fusejax-w1: last words of fusejax-w1" in output, "the end of every worker's log is shown after a crash"


def test_a_run_that_keeps_crashing_ends(pod: Pod) -> None:
    pod.script("exit 1")
    status, output = pod.run(*TRAIN, MAX_CRASHES="1")
    assert status == 1
    assert "Crashed 2 times" in output
    assert len(pod.runs()) == 4
    assert pod.resource() is None


@pytest.mark.parametrize("others", ["exit 1", "hang"])
def test_a_mistake_is_never_restarted(pod: Pod, others: str) -> None:
    pod.script(others)
    pod.script("exit 2", worker=1)
    status, output = pod.run(*TRAIN)
    assert status == 2, output
    assert len(pod.runs()) == 2
    assert pod.resource() is None


@pytest.mark.parametrize(("others", "patience"), [("hang", "60"), ("stubborn", "1")])
def test_workers_left_alone_by_a_crash_are_stopped_and_restarted(pod: Pod, others: str, patience: str) -> None:
    pod.script(others, "exit 0")
    pod.script("exit 1", "exit 0", worker=1)
    status, output = pod.run(*TRAIN, LATE_SECONDS="1", STOP_SECONDS=patience)
    assert status == 0, output
    assert [run.split(":")[0] for run in pod.runs()].count("fusejax-w0") == 2
    assert (pod.root / "saved").exists() == (others == "hang")


def test_a_run_that_vanished_is_a_crash(pod: Pod) -> None:
    pod.script("hang", "exit 0")
    process = pod.start(*TRAIN)
    eventually(lambda: len(pod.groups()) == 2 and "worker.sh log" in pod.calls("tpu-vm ssh")[-1])
    for group in pod.groups():
        os.killpg(group, signal.SIGKILL)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert "restart 1 of 5" in output


def test_workers_that_never_answer_are_replaced(pod: Pod) -> None:
    dead = {"status": 255, "stderr": "Connection timed out"}
    pod.plan(faults=[{"on": "tpu-vm ssh", "with": "worker.sh start", "times": 4, **dead}])
    status, output = pod.run(*TRAIN)
    assert status == 0, output
    assert "The run is stuck: restart 1 of 5" in output
    assert len(pod.calls(CREATE)) == 2


@pytest.mark.parametrize("signals", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_saves_and_deletes(pod: Pod, signals: signal.Signals) -> None:
    pod.script("hang")
    process = pod.start(*TRAIN)
    eventually(lambda: len(pod.runs()) == 2 and "worker.sh log" in pod.calls("tpu-vm ssh")[-1])
    os.killpg(process.pid, signals)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 128 + signals, output
    assert sorted((pod.root / "saved").read_text().splitlines()) == ["saved on fusejax-w0", "saved on fusejax-w1"]
    assert pod.resource() is None


def test_interrupting_while_queueing_withdraws_the_request(pod: Pod) -> None:
    pod.plan(lives=[{"states": ["WAITING_FOR_RESOURCES"]}])
    process = pod.start(*TRAIN)
    eventually(lambda: len(pod.calls(DESCRIBE)) > 2)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 130, output
    assert pod.resource() is None


def test_without_its_terminal_it_leaves_training_on_and_a_rerun_attaches(pod: Pod) -> None:
    pod.script("hang")
    process = pod.start(*TRAIN)
    eventually(lambda: len(pod.runs()) == 2 and "worker.sh log" in pod.calls("tpu-vm ssh")[-1])
    os.killpg(process.pid, signal.SIGHUP)
    process.communicate(timeout=180)
    assert pod.resource() is not None
    again = pod.start(*TRAIN)
    eventually(lambda: len(pod.calls("tpu-vm ssh")) > 10)
    os.killpg(again.pid, signal.SIGINT)
    output, _ = again.communicate(timeout=180)
    assert "Attaching to the run on fusejax" in output
    assert "run 1 in" in output
    assert len(pod.runs()) == 2, "nothing was started a second time"
    assert len(pod.calls("tpu-vm scp")) == 1, "and no code replaced under the run"


def test_keep_keeps_the_slice(pod: Pod) -> None:
    status, output = pod.run("train", "--keep", "a.yaml")
    assert status == 0, output
    assert pod.resource() is not None
    assert pod.calls(DELETE) == []
    assert pod.run("train", "b.yaml")[0] == 0
    second = pod.runs()[2:]  # both hosts write at once
    assert sorted(second) == [f"fusejax-w{worker}: -m fusejax.train --config b.yaml" for worker in (0, 1)]
    assert len(pod.calls(CREATE)) == 1
    assert pod.resource() is None


@pytest.mark.parametrize(("ends", "status"), [("exit 0", 0), (f"exit {STOPPED}", STOPPED)])
def test_run_runs_once_and_tells_how_it_ended(pod: Pod, ends: str, status: int) -> None:
    pod.script(ends)
    assert pod.run("up")[0] == 0
    result, output = pod.run("run", "fusejax.export", "--checkpoint", "gs://b/run")
    assert result == status, output
    assert sorted(pod.runs()) == [f"fusejax-w{worker}: -m fusejax.export --checkpoint gs://b/run" for worker in (0, 1)]
    assert pod.resource() is not None


def test_run_needs_a_slice(pod: Pod) -> None:
    status, output = pod.run("run", "fusejax.export")
    assert status == 1
    assert "fusejax is ABSENT: run tpu/pod.sh up first" in output


def test_status_and_down(pod: Pod) -> None:
    assert pod.run("status") == (0, "fusejax ABSENT\n")
    pod.script("hang")
    assert pod.run("up")[0] == 0
    process = pod.start("run", "fusejax.train")
    eventually(lambda: len(pod.runs()) == 2)
    assert pod.run("status") == (0, "fusejax ACTIVE\nworker fusejax-w0 running\nworker fusejax-w1 running\n")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert pod.run("down")[0] == 0
    assert len((pod.root / "saved").read_text().splitlines()) == 2
    assert pod.resource() is None
    assert pod.run("down")[0] == 0, "nothing to delete is no failure"


def test_logs_follow_a_worker(pod: Pod) -> None:
    assert pod.run("train", "--keep", "a.yaml")[0] == 0
    process = pod.start("logs", "1")
    assert process.stdout is not None
    lines = [process.stdout.readline(), process.stdout.readline()]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert lines[1] == "last words of fusejax-w1\n"


def test_only_what_is_committed_is_sent(pod: Pod, tmp_path: Path) -> None:
    pod.repository = shutil.copytree(pod.repository, tmp_path / "changed", symlinks=True)
    constraints = pod.repository / "constraints.txt"
    committed = constraints.read_text()
    constraints.write_text(committed + "# a change\n")
    status, output = pod.run(*TRAIN)
    assert status == 0, output
    assert "changes that are not committed stay here" in output
    assert (pod.root / "workers/0/fusejax-w0/fusejax/constraints.txt").read_text() == committed


def test_without_gcloud_it_says_so(pod: Pod) -> None:
    for program in ("bash", "dirname", "mktemp", "date", "env"):
        (pod.root / "worker_bin" / program).symlink_to(shutil.which(program) or "")
    status, output = pod.run(*TRAIN, PATH=str(pod.root / "worker_bin"))
    assert status == 1
    assert "gcloud is not installed" in output


@pytest.mark.parametrize(
    ("arguments", "settings", "status", "message"),
    [
        (("train", "a.yaml"), {"TOPOLOGY": "v3-8"}, 1, "TOPOLOGY must look like v5p-16 or 2xv5p-128 (v4, v5e, v5p"),
        (("train", "a.yaml"), {"TOPOLOGY": "tpu7x-8"}, 1, "TPU7x has no queued resources, only machines on GKE"),
        (("train", "a.yaml"), {"CAPACITY": "cheap"}, 1, "CAPACITY must be spot, on-demand or reserved, not cheap"),
        (("train", "a.yaml"), {"ZONE": ""}, 1, "ZONE: is not set"),
        (("train", "typo.yaml"), {}, 1, "typo.yaml is not committed: workers would not get it"),
        (("train", "a.yaml", "--keep"), {}, 2, "tpu/pod.sh train [--keep] CONFIG"),
        (("train",), {}, 2, "tpu/pod.sh train"),
        (("fly",), {}, 2, "tpu/pod.sh train"),
        ((), {}, 2, "tpu/pod.sh train"),
    ],
)
def test_wrong_use_is_named(
    pod: Pod, arguments: tuple[str, ...], settings: dict[str, str], status: int, message: str
) -> None:
    result, output = pod.run(*arguments, **settings)
    assert result == status
    assert message in output
    assert pod.calls("") == []


def test_the_project_defaults_to_that_of_gcloud(pod: Pod) -> None:
    assert pod.run("status", PROJECT="") == (0, "fusejax ABSENT\n")


def test_usage_lists_every_setting() -> None:
    text = (REPOSITORY / "tpu" / "pod.sh").read_text()
    header, _, body = text.partition("set -euo pipefail")
    settings = re.findall(r"\$\{([A-Z_]+):[=?-]", body)
    assert len(settings) > 10
    assert [name for name in settings if name not in header] == []
