"""The judge: starts zygotes, hands out jobs, and turns their reports into verdicts."""

import contextlib
import json
import os
import queue
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from signal import SIGKILL, SIGXCPU
from typing import Any, TypeVar

from data_pipeline.scoring.sandbox.exchange import Printed, exchange
from data_pipeline.scoring.sandbox.outputs import difference
from data_pipeline.scoring.sandbox.script import ERROR_STATUS
from data_pipeline.scoring.sandbox.tiers import (
    ENVIRONMENT,
    Tier,
    command,
    missing,
    package_paths,
    packages,
    tiers,
)
from data_pipeline.scoring.sandbox.zygote import CONFINEMENT_FAILED, MAX_WINDOWS
from data_pipeline.scoring.scorer import Verdict
from fusejax.common.cli import UserError

WALL_FACTOR = 4.0
"""Wall time allowed for each second of CPU time: other work may share the cores."""
START_SECONDS = 60.0
_CALM_LOAD = 8.0
"""Load per core above which a job that hardly ran may have waited for a core, rather than slept."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Limits:
    """CPU seconds and megabytes of address space: for a program with all its tests, and as much for the examiner; for a
    script each time that it runs."""

    cpu_seconds: float
    memory_mb: int

    @property
    def wall_seconds(self) -> float:
        return 2 + WALL_FACTOR * self.cpu_seconds


@dataclass(frozen=True)
class Job:
    """A program and what judges it."""

    setting: str
    """Runs before the tests."""
    shared: str
    """The part of the setting that runs before the program, too."""
    code: str
    tests: tuple[str, ...]
    classes: tuple[str, ...]
    """Classes of the shared setting."""
    names: tuple[str, ...]
    """What the program defines at its top level."""
    imports: tuple[str, ...]
    """The program's import statements, for tests that rely on them: they run with the tests, its definitions do not."""


@dataclass(frozen=True)
class Case:
    """A test of a script."""

    stdin: str
    expected: str
    """What it should print. Only the judge knows that; see `outputs.difference`."""


@dataclass(frozen=True)
class Script:
    """A program that reads standard input and prints, run once for each of its tests."""

    setting: str
    """Runs before it, under the same name `__main__`."""
    code: str
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Outcome:
    verdict: Verdict
    detail: str


class Sandbox:
    """Runs jobs in the strongest tier that works on this machine; `run` may be called from many threads.

    Args:
      modules: what setting, programs and tests may import; imported at the start, since no file can be read later.
      workers: jobs at a time.
      tier: see `strongest`.
    """

    def __init__(self, limits: Limits, modules: Sequence[str], *, workers: int, tier: Tier):
        self.tier = tier
        self._limits, self._modules = limits, modules
        self._idle: queue.SimpleQueue[_Zygote | None] = queue.SimpleQueue()
        self._workers = workers
        for _ in range(workers):
            self._idle.put(None)

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *exception: object) -> None:
        for _ in range(self._workers):
            zygote = self._idle.get()
            if zygote is not None:
                zygote.stop()

    def run(self, job: Job) -> Outcome:
        """The verdict on a job: "correct" if its tests passed, "unknown" if that could not be found out.

        Raises:
          UserError: the sandbox does not start.
        """
        report, ends = self._with_zygote(lambda zygote: zygote.run(job))
        return self._outcome(job, report, ends)

    def run_script(self, script: Script) -> Outcome:
        """The verdict on a script, of its tests in order, up to the first that it does not pass.

        Raises:
          UserError: the sandbox does not start.
        """
        source = json.dumps({"setting": script.setting, "code": script.code}).encode()
        source = len(source).to_bytes(4, "big") + source
        for number, case in enumerate(script.cases, 1):
            outcome = self._run_case(f"test_{number}", source, case)
            if outcome.verdict != "correct":
                return outcome
        return Outcome("correct", "passed")

    def _with_zygote(self, run: Callable[["_Zygote"], tuple[_Result, dict | None]]) -> tuple[_Result, dict | None]:
        zygote = self._idle.get()
        try:
            zygote = zygote or _Zygote(self.tier, self._limits, self._modules)
            result, ends = run(zygote)
            if ends is None or ends.get("examiner", [0])[0] != 0:
                # The job may be unread still.
                zygote.stop()
                zygote = None
        finally:
            self._idle.put(zygote)
        return result, ends

    def _run_case(self, test: str, source: bytes, case: Case) -> Outcome:
        given = source + case.stdin.encode(errors="replace")
        printed, ends = self._with_zygote(lambda zygote: zygote.run_script(given))
        if stopped := _stopped(ends, sleeps=False):
            return stopped
        assert ends is not None
        status, seconds = ends["program"]
        if printed.too_much:
            return Outcome("wrong", f"output_limit: {test}")
        if self._out_of_time(status, seconds):
            return Outcome("wrong", f"timeout: {test}")
        if status == ERROR_STATUS and printed.error:
            error = printed.error.decode(errors="replace").strip().rpartition("\n")[2]
            return Outcome("wrong", f"error: {test}: {error[:200]}")
        if status:
            return Outcome("wrong", f"ended_early: {test}: exit status {status}")
        found = difference(printed.output.decode(errors="replace"), case.expected)
        return Outcome("wrong", f"wrong_output: {test}: {found}") if found else Outcome("correct", "passed")

    def _out_of_time(self, status: int, seconds: float) -> bool:
        return status == -SIGXCPU or (status == -SIGKILL and seconds >= self._limits.cpu_seconds)

    def _outcome(self, job: Job, report: dict | None, ends: dict | None) -> Outcome:
        if stopped := _stopped(ends, sleeps=any("sleep" in text for text in (job.setting, *job.tests))):
            return stopped
        assert ends is not None
        (status, seconds), (examiner, _) = ends["program"], ends["examiner"]
        if report is None:
            return Outcome("unknown", "tests_timeout" if examiner in (-SIGXCPU, -SIGKILL) else "examiner_ended")
        if report["verdict"] != "ended":
            return Outcome(report["verdict"], report["detail"])
        if self._out_of_time(status, seconds):
            return Outcome("wrong", "timeout")
        return Outcome("wrong", f"ended_early: exit status {status}")


def _stopped(ends: dict | None, *, sleeps: bool) -> Outcome | None:
    """The outcome of what the zygote did not let run to its end; None for anything else.

    Args:
      sleeps: whether the tests themselves may sleep.
    """
    if ends is None:
        return Outcome("unknown", "sandbox_ended")
    if any(ends[name][0] == CONFINEMENT_FAILED for name in ("program", "examiner") if name in ends):
        return Outcome("unknown", "sandbox_failed")
    if ends["stopped"] == "disk":
        return Outcome("wrong", "disk_limit")
    if ends["stopped"] in ("asleep", "wall"):
        calm = os.getloadavg()[0] / (os.cpu_count() or 1) < _CALM_LOAD
        if ends["stopped"] == "asleep" and calm and not sleeps:
            return Outcome("wrong", "timeout: asleep")
        return Outcome("unknown", "wall_timeout")
    return None


def probe(tier: Tier) -> str | None:
    """Why no job runs in a tier on this machine; None if one does."""
    job = Job("", "", "def f():\n    return 1", ("assert f() == 1",), (), ("f",), ())
    try:
        with Sandbox(Limits(5, 1024), (), workers=1, tier=tier) as sandbox:
            outcome = sandbox.run(job)
    except UserError as error:
        return str(error)
    return None if outcome.verdict == "correct" else f"{tier.name}: {outcome.detail}"


def strongest(*, allow_unsafe: bool) -> Tier:
    """The strongest tier in which a job runs on this machine.

    Raises:
      UserError: there is none.
    """
    problems = []
    for tier in tiers(allow_unsafe=allow_unsafe):
        problem = probe(tier)
        if problem is None:
            return tier
        problems.append(problem)
    why = "; ".join(part for part in (missing(), *problems) if part)
    raise UserError(
        f"no sandbox works on this machine, and programs written by models can do harm ({why}); "
        "install bubblewrap, run where Landlock is on, or accept the danger with --allow-unsafe"
    )


class _Zygote:
    """One zygote's process, with its scratch directory."""

    def __init__(self, tier: Tier, limits: Limits, modules: Sequence[str]):
        self._seconds = limits.wall_seconds
        self._scratch = tempfile.mkdtemp(prefix="fusejax-")
        if tier.user is not None:
            os.chown(self._scratch, tier.user, tier.user)
        folders = packages(modules)
        settings = {
            "modules": sorted(modules),
            "packages": package_paths(tier, folders),
            "scratch": self._scratch,
            "wall_seconds": limits.wall_seconds,
            **vars(limits),
            **{name: getattr(tier, name) for name in ("bubblewrap", "user", "landlock", "seccomp")},
        }
        self._socket, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            command(tier, self._scratch, json.dumps(settings), folders),
            stdin=theirs.fileno(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=ENVIRONMENT,
            start_new_session=True,
        )
        theirs.close()
        self._socket.setblocking(False)
        assert self._process.stdout and self._process.stderr
        self._in, self._out = self._socket.fileno(), self._process.stdout.fileno()
        self._read = b""
        if self._line(time.monotonic() + START_SECONDS) != {"ready": True}:
            # The whole group: a process left over would keep stderr open.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, SIGKILL)
            last = self._process.stderr.read().decode(errors="replace").strip().splitlines()[-1:]
            self.stop()
            raise UserError(f"{tier.name}: the sandbox does not start: {' '.join(last) or 'it says nothing'}")

    def run(self, job: Job) -> tuple[dict | None, dict | None]:
        """(report of the examiner, how the processes ended), None for what did not come."""
        payload = json.dumps(vars(job)).encode()
        deadline = time.monotonic() + MAX_WINDOWS * self._seconds + START_SECONDS
        if not self._write(b"J" + len(payload).to_bytes(4, "big") + payload, deadline):
            return None, None
        report = None
        line = self._line(deadline)
        if line is not None and "verdict" in line:
            report, line = line, self._line(deadline)
        return report, line

    def run_script(self, given: bytes) -> tuple[Printed, dict | None]:
        """(what it printed, how it ended), None where the zygote did not say."""
        deadline = time.monotonic() + MAX_WINDOWS * self._seconds + START_SECONDS
        (stdin, ours_in), (ours_out, stdout), (ours_err, stderr) = os.pipe(), os.pipe(), os.pipe()
        try:
            with contextlib.suppress(OSError):  # It has ended; the pipes will say so.
                socket.send_fds(self._socket, [b"S"], [stdin, stdout, stderr])
        finally:
            for descriptor in (stdin, stdout, stderr):
                os.close(descriptor)
        return exchange(given, ours_in, ours_out, ours_err, deadline), self._line(deadline)

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, SIGKILL)
        self._process.wait()
        for stream in (self._socket, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _write(self, data: bytes, deadline: float) -> bool:
        view = memoryview(data)
        while view:
            _, ready, _ = select.select([], [self._in], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return False
            try:
                view = view[os.write(self._in, view) :]
            except (BrokenPipeError, ConnectionResetError):
                return False
        return True

    def _line(self, deadline: float) -> dict[str, Any] | None:
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._out], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(self._out, 2**16) if ready else b""
            if not part:
                return None
            self._read += part
        line, _, self._read = self._read.partition(b"\n")
        try:
            return json.loads(line)
        except ValueError:
            return None
