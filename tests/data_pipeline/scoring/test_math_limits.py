"""No answer can stall the run or take the machine's memory: each ends in a verdict, within the limits, and the next
one is judged as ever."""

import multiprocessing
import os
import resource
import time
from pathlib import Path

import pytest

from data_pipeline.domains import VerifierLimits
from data_pipeline.scoring.math import math_worker
from data_pipeline.scoring.math.scorer import LONGEST, MathScorer
from data_pipeline.scoring.scorer import Item
from data_pipeline.scoring.worker_pool import WorkerPool
from tests.data_pipeline.helpers import misbehave

TIMEOUT, MEMORY_MB = 2.0, 512
STALLING = {
    "tower": r"9^{9^{9^{9}}}",
    "power": r"(x+1)^{100000}(x-1)^{99999}",
    "factorials": "((((9!)!)!)!)",
    "sum": r"\sum_{n=1}^{10^{12}}\frac{1}{n^2}",
    "product": r"\prod_{n=1}^{10^9}n",
    "binomial": r"\binom{10^{10}}{5\cdot10^{9}}",
    "sine of a huge number": r"\sin(10^{10^{6}})",
    "expansion": "(a+b+c+d+e+f+g)^{40}",
    "parentheses": "(" * 900 + "1" + ")" * 900,
}
OTHER = {
    "memory": r"\frac{1}{9^{9^{9}}!}",
    "factorials without brackets": "5" + "!" * 60,
    "roots": r"\sqrt{" * 250 + "2" + "}" * 250,
    "powers": "^".join(["2"] * 500),
    "integral": r"\int_0^{\infty}\frac{\sin(x^{x^{x}})}{x^{x}+e^{x^2}} dx",
    "brackets that do not close": "{" * 1000,
    "points of points": "(1," * 400 + "2" + ")" * 400,
    "ranges of ranges": "1 to " * 390 + "2",
    "long": "1+" * LONGEST,
    "digits": "9" * 100_000,
    "null byte": "\\pi\0x",
    "surrogate": "\\pi\ud800x",
}


def test_stalling_and_hungry_answers_are_unknown_and_the_next_is_judged():
    scorer = MathScorer(VerifierLimits(timeout_seconds=TIMEOUT, memory_mb=MEMORY_MB), workers=2)
    bombs = {**STALLING, **OTHER}
    items = [Item({"answer": r"\sqrt{2}+x"}, rf"\boxed{{{bomb}}}") for bomb in bombs.values()]
    items.append(Item({"answer": STALLING["tower"]}, r"\boxed{\pi}"))
    items.append(Item({"answer": r"\sqrt{8}"}, r"\boxed{2\sqrt{2}}"))
    started = time.monotonic()
    *scores, last = scorer.score(items)
    assert time.monotonic() - started < (TIMEOUT + 3) * len(items) / 2
    assert {name: score.verdict for name, score in zip(bombs, scores, strict=False)} == dict.fromkeys(bombs, "unknown")
    assert scores[-1].verdict == "unknown"
    assert last.verdict == "correct"
    details = {score.detail for score in scores}
    assert {"timeout", "too_long"} <= details


def test_a_number_too_big_for_the_memory_is_unknown():
    config = VerifierLimits(timeout_seconds=60.0, memory_mb=100)
    items = [Item({"answer": r"\sqrt{2}+x"}, r"\boxed{\frac{1}{9^{9^{9}}!}}"), Item({"answer": "2x"}, r"\boxed{x+x}")]
    found = [(score.verdict, score.detail) for score in MathScorer(config, workers=1).score(items)]
    assert found == [("unknown", "out_of_memory"), ("correct", "math_verify")]


def test_worker_pool_survives_hanging_crashing_and_hungry_tasks():
    tasks = ["a", "hang", "crash", "eat", "b", "hang", "c"]
    with WorkerPool(misbehave, timeout=1.0, memory_mb=512, workers=2) as pool:
        results = pool.map(tasks)
        assert results == [("A",), "timeout", "crashed", "out_of_memory", ("B",), "timeout", ("C",)]
        assert pool.map(["d"]) == [("D",)]


def test_no_process_is_left():
    with WorkerPool(where, timeout=0.5, memory_mb=512, workers=1) as pool:
        (first,), hung, (second,) = pool.map(["where", "hang", "where"])
        assert hung == "timeout" and first != second  # The one that hung is gone, and its task with it.
        assert not multiprocessing.active_children()


def test_a_worker_has_limits_of_its_own_whatever_the_pool_does():
    with WorkerPool(limits, timeout=3.0, memory_mb=300, workers=1) as pool:
        (((memory, size, cpu),),) = [pool.map(["limits"])]
    assert 300 * 2**20 <= memory <= size + 400 * 2**20
    assert 3 <= cpu < 60  # Seconds of CPU after which the kernel ends it, should the pool's process be gone.


def test_every_failure_of_the_parser_is_unknown(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise RecursionError("too deep")

    monkeypatch.setattr(math_worker, "_compare", fail)
    assert math_worker.verify((r"\pi", r"2\pi")) == ("unknown", "math_verify_failed: RecursionError")


def where(task: str) -> tuple[int]:
    if task == "hang":
        time.sleep(60)
    return (os.getpid(),)


def limits(_: str) -> tuple[int, int, int]:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return resource.getrlimit(resource.RLIMIT_AS)[0], size, resource.getrlimit(resource.RLIMIT_CPU)[0]
