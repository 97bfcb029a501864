"""Runs one program with its tests in a process of its own, with limits on time, memory, files and processes.

The process is isolated Python (`-I -S`) in an empty temporary directory, without environment or inherited files, killed
as a group. It contains accidents, and programs that end early; it is no wall against an attacker: the network and
readable files stay within reach. Run untrusted models' code on a machine that holds nothing of value.
"""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.scorers.base import Verdict

RUNNER = Path(__file__).with_name("sandbox_runner.py")
WALL_FACTOR = 4.0
"""Wall time allowed for each second of CPU time: other work may share the cores."""
MAX_REPORT_BYTES = 2**16


@dataclass(frozen=True)
class Limits:
    """CPU seconds and megabytes of address space of a program with all its tests."""

    cpu_seconds: float
    memory_mb: int


@dataclass(frozen=True)
class Outcome:
    verdict: Verdict
    detail: str


def run(code: str, tests: list[str], limits: Limits, *, setting: str = "") -> Outcome:
    """Whether the program, run after `setting`, passes all its tests.

    The verdict "correct" needs a report that bears this run's nonce, so ending early does not pass.
    """
    nonce = secrets.token_hex(16)
    wall = 2 + WALL_FACTOR * limits.cpu_seconds
    job = {"setting": setting, "code": code, "tests": tests, "nonce": nonce, "wall_seconds": wall, **vars(limits)}
    with tempfile.TemporaryDirectory(prefix="fusejax-", ignore_cleanup_errors=True) as directory:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(RUNNER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            env={},
            start_new_session=True,
        )
        try:
            payload = json.dumps(job).encode()
            output, _ = process.communicate(payload, timeout=wall)
        except subprocess.TimeoutExpired:
            return Outcome("unknown", "wall_timeout")
        finally:
            # The group, not the process: children that the program left behind hold the pipe open.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
    report = _report(output[-MAX_REPORT_BYTES:], nonce)
    if report is not None:
        failed = report["failed"]
        if failed is None:
            return Outcome("correct", "passed")
        return Outcome("unknown" if failed.startswith("bad_test") else "wrong", failed)
    if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return Outcome("wrong", "timeout")
    return Outcome("wrong", f"ended_early: exit status {process.returncode}")


def _report(output: bytes, nonce: str) -> dict[str, Any] | None:
    try:
        report = json.loads(output)
    except ValueError:
        return None
    valid = isinstance(report, dict) and report.get("nonce") == nonce and "failed" in report
    return report if valid else None
