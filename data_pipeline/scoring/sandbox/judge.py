"""The judge: starts zygotes, hands out jobs, and turns their reports into verdicts."""

import contextlib
import json
import os
import queue
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from signal import SIGKILL, SIGXCPU
from typing import Any

from data_pipeline.scoring.sandbox.tiers import ENVIRONMENT, Tier, command, missing, tiers
from data_pipeline.scoring.sandbox.zygote import CONFINEMENT_FAILED, MAX_WINDOWS
from data_pipeline.scoring.scorer import Verdict
from fusejax.common.cli import UserError

WALL_FACTOR = 4.0
"""Wall time allowed for each second of CPU time: other work may share the cores."""
START_SECONDS = 60.0
_CALM_LOAD = 8.0
"""Load per core above which a job that hardly ran may have waited for a core, rather than slept."""


@dataclass(frozen=True)
class Limits:
    """CPU seconds and megabytes of address space for a program with all its tests; the examiner gets as much."""

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
        zygote = self._idle.get()
        try:
            zygote = zygote or _Zygote(self.tier, self._limits, self._modules)
            report, ends = zygote.run(job)
            if ends is None or ends["examiner"][0] != 0:
                # The job may be unread still.
                zygote.stop()
                zygote = None
        finally:
            self._idle.put(zygote)
        return self._outcome(job, report, ends)

    def _outcome(self, job: Job, report: dict | None, ends: dict | None) -> Outcome:
        if ends is None:
            return Outcome("unknown", "sandbox_ended")
        (status, seconds), (examiner, _) = ends["program"], ends["examiner"]
        if CONFINEMENT_FAILED in (status, examiner):
            return Outcome("unknown", "sandbox_failed")
        if ends["stopped"] == "disk":
            return Outcome("wrong", "disk_limit")
        if ends["stopped"] in ("asleep", "wall"):
            calm = os.getloadavg()[0] / (os.cpu_count() or 1) < _CALM_LOAD
            tests_sleep = any("sleep" in text for text in (job.setting, *job.tests))
            if ends["stopped"] == "asleep" and calm and not tests_sleep:
                return Outcome("wrong", "timeout: asleep")
            return Outcome("unknown", "wall_timeout")
        if report is None:
            return Outcome("unknown", "tests_timeout" if examiner in (-SIGXCPU, -SIGKILL) else "examiner_ended")
        if report["verdict"] != "ended":
            return Outcome(report["verdict"], report["detail"])
        if status == -SIGXCPU or (status == -SIGKILL and seconds >= self._limits.cpu_seconds):
            return Outcome("wrong", "timeout")
        return Outcome("wrong", f"ended_early: exit status {status}")


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
        settings = {
            "modules": sorted(modules),
            "scratch": self._scratch,
            "wall_seconds": limits.wall_seconds,
            **vars(limits),
            **{name: getattr(tier, name) for name in ("bubblewrap", "user", "landlock", "seccomp")},
        }
        self._process = subprocess.Popen(
            command(tier, self._scratch, json.dumps(settings)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=ENVIRONMENT,
            start_new_session=True,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
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

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
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
            except BrokenPipeError:
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
