"""The script that asks a GPU everything: which parts run, what stops them, and what it says of them in the end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_session.sh"
# In place of Python: notes what it is asked to run, and fails where it is told to.
STUB = """#!/usr/bin/env bash
echo "$*" >>"$CALLS"
echo "ran $*"
[[ "$*" != *"$FAILS"* ]]
"""


@pytest.fixture
def session(tmp_path: Path):
    python = tmp_path / "python"
    python.write_text(STUB)
    python.chmod(0o755)
    variables = {
        "PYTHON": str(python),
        "OUT": str(tmp_path / "out"),
        "BUNDLE": str(tmp_path / "bundle"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "CALLS": str(tmp_path / "calls"),
    }

    def run(*arguments: str, fails: str = "nothing", **more: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, **variables, "FAILS": fails, **more}
        return subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True)

    return run


def calls(tmp_path: Path) -> list[str]:
    return [line.split()[1] for line in (tmp_path / "calls").read_text().splitlines()]


def test_parts_that_are_named_run_in_that_order(session, tmp_path: Path):
    done = session("--tiny", "step", "attention")
    assert done.returncode == 0, done.stdout + done.stderr
    assert calls(tmp_path) == ["benchmarks.gpu", "benchmarks.attention"]
    assert "step: ok" in done.stdout and "attention: ok" in done.stdout.splitlines()[-1]
    assert "--cases tiny" in (tmp_path / "out" / "attention.txt").read_text()


def test_a_part_that_fails_stops_no_other_and_is_told(session, tmp_path: Path):
    done = session("--tiny", "versions", "attention", "tests", fails="benchmarks.attention")
    assert done.returncode == 1
    assert calls(tmp_path) == ["benchmarks.gpu_versions", "benchmarks.attention", "pytest"]
    assert [line.split(",")[0] for line in (tmp_path / "out" / "summary.txt").read_text().splitlines()] == [
        "versions: ok", "attention: FAILED", "tests: ok"
    ]  # fmt: skip


def test_what_is_unknown_runs_nothing(session, tmp_path: Path):
    done = session("attention", "speed")
    assert done.returncode == 2
    assert "no part speed" in done.stderr
    assert not (tmp_path / "calls").exists()


def test_without_weights_the_example_is_skipped_and_that_is_a_failure(session, tmp_path: Path):
    done = session("--tiny", "smollm2")
    assert done.returncode == 1
    assert "skipped: no weights" in done.stdout
    assert not (tmp_path / "calls").exists()


def test_nothing_begins_after_the_limit(session, tmp_path: Path):
    done = session("attention", LIMIT="3")
    assert done.returncode == 1
    assert "no time left" in done.stdout
    assert not (tmp_path / "calls").exists()


def test_passes_shellcheck():
    subprocess.run([Path(sys.executable).with_name("shellcheck"), SCRIPT], check=True)
