"""The commands as processes: what they say of themselves, how shells complete them, how Ctrl-C ends them."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import yaml

import fusejax
from data_pipeline.__main__ import IMPORT, STAGES, SUMMARIES
from fusejax.__main__ import COMMANDS
from tests.tiny_runs import train_command

ROOT = Path(__file__).parents[2]


def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | changes, capture_output=True, text=True)


def test_the_list_of_commands():
    told = run("fusejax", "--help").stdout
    assert all(f"\n    {name} " in told for name in COMMANDS)
    assert "75 after SIGTERM" in told and "130 interrupted" in told
    modules = {path.stem for path in (ROOT / "fusejax").glob("*.py")}
    assert modules - {"__init__", "__main__", "config"} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_by_both_names(name):
    for command in (("fusejax", name), (f"fusejax.{name}",)):
        told = run(*command, "--help").stdout
        program = " ".join(["python -m", *command])
        assert told.startswith(f"usage: {program} ")
        assert "\nReads   " in told and "\nWrites  " in told and f"example:\n  {program}" in told
        assert run(*command, "--version").stdout.startswith(f"fusejax {fusejax.__version__} (python ")


@pytest.mark.parametrize("name", [*STAGES, "run", IMPORT])
def test_a_stage_says_what_it_does(name):
    assert f"\n    {name} " in run("data_pipeline", "--help").stdout
    told = run("data_pipeline", name, "--help").stdout
    assert f"\n{SUMMARIES[name].capitalize()[:20]}" in told
    assert name == "run" or ("\nReads   " in told and "\nWrites  " in told)


@pytest.mark.parametrize(
    "command", [("fusejax", "--help"), ("fusejax", "train", "--help"), ("data_pipeline", "--help")]
)
def test_help_imports_nothing_slow(command):
    program = f"""
        import runpy, sys
        sys.argv[1:] = {list(command[1:])}
        try:
            runpy.run_module({command[0]!r}, run_name="__main__", alter_sys=True)
        except SystemExit:
            print([name for name in ("jax", "torch", "transformers", "vllm") if name in sys.modules])
    """
    found = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.endswith("\n[]\n"), found.stderr


@pytest.mark.parametrize("command", [(), ("trian",)])
def test_an_unknown_command_is_the_users_mistake(command):
    result = run("fusejax", *command)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


SHELL = """
eval "$(register-python-argcomplete fusejax)"
COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9
read -ra COMP_WORDS <<<"$COMP_LINE"
[[ $COMP_LINE == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_python_argcomplete fusejax
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def programs(tmp_path) -> str:
    """A PATH where `fusejax` is what an installation puts there."""
    program = tmp_path / "fusejax"
    program.write_text(f"#!{sys.executable}\nfrom fusejax.__main__ import main\nmain()\n")
    program.chmod(0o755)
    return os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("fusejax tr", {"train"}),
        ("fusejax plan --se", {"--search"}),
        ("fusejax export --dtype ", {"bfloat16", "float32"}),
        ("fusejax train --config pyproj", {"pyproject.toml"}),
        ("fusejax train --config x.yaml optimizer.warm", {"optimizer.warmup_ratio="}),
        ("fusejax train --config x.yaml preference.b", {"preference.beta="}),
    ],
)
def test_bash_completes(programs, line, completions):
    command = ["bash", "-c", SHELL, "bash", line]
    environment = os.environ | {"PATH": programs, "PYTHONPATH": str(ROOT)}
    shell = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert {each.strip() for each in shell.stdout.splitlines()} == completions, shell.stderr


WAITS = """
import sys, time
from fusejax.common.cli import run
def main():
    print("ready", flush=True)
    time.sleep(60)
run(main)
"""


def test_ctrl_c_is_one_line_and_status_130():
    process = subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "interrupted\n"
    assert process.returncode == 130


def interrupt(command: list[str], when: Callable[[], bool]) -> tuple[int, str]:
    """Exit status and stderr of a program to which, and to all that it started, a terminal's Ctrl-C came."""
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while process.poll() is None and not when():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    return process.returncode, told


def test_ctrl_c_ends_a_training_run(world, tmp_path):
    metrics = tmp_path / "run" / "metrics.jsonl"
    command = train_command(world, tmp_path / "run", epochs=10_000)
    status, told = interrupt(command, lambda: metrics.exists() and metrics.stat().st_size > 0)
    assert (status, told.splitlines()[-1]) == (130, "interrupted")
    assert "Traceback" not in told and "error" not in told


REWARD = """
import pathlib, time
def score(prompt, text):
    pathlib.Path(__file__).with_name("asked").touch()
    time.sleep(60)
"""


def test_ctrl_c_ends_a_stage_of_the_pipeline(tmp_path, monkeypatch):
    (tmp_path / "slow_reward.py").write_text(REWARD)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    (tmp_path / "prompts.jsonl").write_text('{"id": "a", "prompt": "hello", "answer": "1"}\n')
    config = {
        "output_dir": str(tmp_path / "out"),
        "prompts": [{"path": str(tmp_path / "prompts.jsonl"), "dataset": "d", "domain": "math"}],
        "sources": [{"name": "s", "model": "none"}],
        "scorers": {"math": {"reward": "slow_reward:score", "correctness": "math_verify"}, "workers": 2},
    }
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(config))
    assert run("data_pipeline", "prompts", "--config", str(tmp_path / "data.yaml")).returncode == 0
    (tmp_path / "out" / "samples").mkdir()
    sample = {"prompt_id": "a", "text": "1", "finish_reason": "stop", "source": "s", "sample_index": 0}
    pl.DataFrame([sample]).write_parquet(tmp_path / "out" / "samples" / "s.parquet")
    command = [sys.executable, "-m", "data_pipeline", "score", "--config", str(tmp_path / "data.yaml")]
    status, told = interrupt(command, (tmp_path / "asked").exists)
    assert (status, told) == (130, "interrupted\n")


LOSES_IT = """
import time
from fusejax.distributed.hosts import join
with join():
    print("ready", flush=True)
    for _ in range(2):
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass
"""


def test_ctrl_c_that_a_library_loses_ends_a_run_all_the_same():
    process = subprocess.Popen(
        [sys.executable, "-c", LOSES_IT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=50)[1].splitlines()[-1] == "interrupted"
    assert process.returncode == 130
