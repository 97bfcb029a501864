"""A data set tokenised by several processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fusejax.data import cores
from fusejax.data.cores import tokenize_on_all_cores
from fusejax.data.examples import tokenize
from fusejax.data.records import Record, Shards, encode, open_shards, write_shards
from tests.data.families import make_tokenizer
from tests.data.test_examples import pair


class Waiting(Shards):
    """Records that never come."""

    def __getitem__(self, index: Any) -> Any:
        print("reads", file=sys.stderr, flush=True)
        time.sleep(600)


def records(count: int) -> list[Record]:
    texts = ["yes", "a 😀 b", "<|im_end|>", "no", "word " * 60]
    return [pair(str(i), chosen=f"{texts[i % 5]} {i % 7}", rejected="no 3") for i in range(count)]


@pytest.mark.parametrize("format", ["arrayrecord", "tfrecord"])
def test_processes_change_nothing(tokenizer, tmp_path, monkeypatch, format):
    monkeypatch.setattr(cores, "RECORDS_A_PROCESS", 4)
    monkeypatch.setattr(cores, "_cores", lambda: 2)
    write_shards(tmp_path, "train", records(23), kind="dpo", format=format, num_shards=3, manifest={})
    source = open_shards(tmp_path / "train")
    rules: dict[str, Any] = {"max_length": 60, "stop_ids": [tokenizer.eos_token_id]}
    started = []
    start = cores._start
    monkeypatch.setattr(cores, "_start", lambda: started.append(start()) or started[-1])
    found = tokenize_on_all_cores(source, tokenizer, records=range(3, 23), **rules)
    expected = tokenize(source, tokenizer, records=range(3, 23), **rules)
    assert len(started) == 2 and all(process.returncode is not None for process in started)
    assert found.fingerprint == expected.fingerprint and found.ids == expected.ids
    assert found.rejected == expected.rejected and found.changes == expected.changes
    assert {rejection.reason for rejection in found.rejected} and found.changes.keys() >= {"cut", "spelled"}


def test_few_records_need_no_process(tokenizer, monkeypatch):
    monkeypatch.setattr(cores, "_start", lambda: pytest.fail("started"))
    source = Shards("data", "dpo", "", [[encode(record) for record in records(5)]])
    found = tokenize_on_all_cores(source, tokenizer, records=range(5), max_length=60)
    assert found.fingerprint == tokenize(source, tokenizer, max_length=60).fingerprint


def test_a_killed_process_ends_the_others(tokenizer, monkeypatch):
    monkeypatch.setattr(cores, "RECORDS_A_PROCESS", 1)
    monkeypatch.setattr(cores, "_cores", lambda: 2)
    started = []
    start = cores._start

    def start_and_kill_the_second() -> subprocess.Popen[bytes]:
        started.append(start())
        if len(started) == 2:
            started[1].kill()
        return started[-1]

    monkeypatch.setattr(cores, "_start", start_and_kill_the_second)
    waiting = Waiting("data", "dpo", "", [[b""] * 4])
    with pytest.raises(ChildProcessError, match="from 2 on was killed by signal 9; is there too little memory"):
        tokenize_on_all_cores(waiting, tokenizer, records=range(4), max_length=60)
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2


def start_for_ever() -> None:
    """What the process of the next test does."""
    cores.RECORDS_A_PROCESS, cores._cores = 1, lambda: 2
    waiting = Waiting("data", "dpo", "", [[b""] * 4])
    tokenize_on_all_cores(waiting, make_tokenizer("chatml"), records=range(4), max_length=60)


def test_processes_end_with_the_one_that_started_them():
    command = [sys.executable, "-c", f"from {__name__} import start_for_ever; start_for_ever()"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    while process.stderr.readline() != "reads\n":
        assert process.poll() is None
    process.kill()
    process.communicate(timeout=120)  # to the end of stderr, which the others have, too
