"""Judges behind a server on loopback that is a program, and says so in its name: plumbing, not verdicts."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest
from etils import epath

from data_pipeline.benchmarks import grading
from data_pipeline.benchmarks import judge as judging
from data_pipeline.benchmarks.benchmark import Answer, Grade, Item, Judged
from data_pipeline.benchmarks.config import BenchmarkConfig
from data_pipeline.benchmarks.judge import STORED, JudgeConfig
from data_pipeline.benchmarks.suite.alpacaeval2 import AlpacaEval2
from data_pipeline.benchmarks.suite.arena_hard import ArenaHard
from data_pipeline.benchmarks.suite.mt_bench import MTBench
from data_pipeline.sampling import answer_store
from data_pipeline.sampling.backends import openai_connection
from fusejax.common.cli import UserError
from tests.data_pipeline.sampling.server import Asked, Reply, completion, serving

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_connection, "FIRST_WAIT", 0.01)


def config(url: str, **values: Any) -> JudgeConfig:
    return JudgeConfig.model_validate({"url": url, "model": "scripted-length", "concurrency": 4, **values})


def graded(benchmark: Judged, answers: list[Answer], server: JudgeConfig, folder: Path) -> list[Grade]:
    return judging.judge(benchmark, answers, server, epath.Path(folder / "judgments"))


def stored(folder: Path) -> list[dict]:
    return list(answer_store.read(epath.Path(folder / "judgments"), STORED).iter_rows(named=True))


def arena(count: int, ours: Callable[[int], str], theirs: Callable[[int], str]) -> list[Answer]:
    """Our answers to so many questions of Arena-Hard, beside the baseline's."""
    return [
        Answer(Item(f"q{n}", {"question": f"Question {n}?", "baseline": theirs(n)}), 0, (ours(n),), ("stop",), 1)
        for n in range(count)
    ]


def alpaca(count: int) -> list[Answer]:
    fields = dict.fromkeys(
        ("difficulty", "longer_preference", "longer_delta", "shorter_preference", "shorter_delta"), 0.5
    )
    return [
        Answer(Item(f"{n:04d}", {"instruction": f"Say {n}.", "output": "no", **fields}), 0, ("yes",), ("stop",), 1)
        for n in range(count)
    ]


def mt_bench(count: int) -> list[Answer]:
    items = MTBench().items(
        {
            "mt_bench": [{"question_id": n, "category": "stem", "turns": [f"A{n}?", f"B{n}?"]} for n in range(count)],
            "mt_bench_references": [],
        }
    )
    return [Answer(item, 0, ("one", "two"), ("stop", "stop"), 2) for item in items]


def longer_wins(asked: Asked) -> Reply:
    """A scripted judge of Arena-Hard: much longer is clearly better."""
    text = asked.body["messages"][1]["content"]
    sizes = []
    for name in "AB":
        text = text.partition(f"<|The Start of Assistant {name}'s Answer|>\n")[2]
        sizes.append(len(text.partition(f"\n<|The End of Assistant {name}'s Answer|>")[0]))
    clear = ">>" if abs(sizes[0] - sizes[1]) > 5 else ">"
    verdict = "A=B" if sizes[0] == sizes[1] else f"A{clear}B" if sizes[0] > sizes[1] else f"B{clear}A"
    return Reply(completion(asked, f"Longer is better: [[{verdict}]]"))


def logprobs(asked: Asked, *pairs: tuple[str, float]) -> Reply:
    found = completion(asked, pairs[0][0])
    top = [{"token": token, "logprob": math.log(likely), "bytes": None} for token, likely in pairs]
    found["choices"][0] |= {"logprobs": {"content": [{"token": pairs[0][0], "top_logprobs": top}]}}
    found["choices"][0]["finish_reason"] = "length"
    return Reply(found)


def test_exchanged_models_share_the_games(tmp_path: Path):
    """The judge is asked the same things: none of the exchanged questions is asked again. Together exactly 100."""
    ours, theirs = (lambda n: "x" * (1 + 7 * n % 11)), (lambda n: "y" * (1 + 5 * n % 9))
    benchmark = ArenaHard()
    with serving(longer_wins) as server:
        grades = graded(benchmark, arena(12, ours, theirs), config(server.url), tmp_path)
        assert len(server.asked) == 24
        exchanged = graded(benchmark, arena(12, theirs, ours), config(server.url), tmp_path)
        assert len(server.asked) == 24
    won, games = (sum(grade.values[name] or 0 for grade in grades) for name in ("won", "games"))
    other = sum(grade.values["won"] or 0 for grade in exchanged)
    assert won + other == games and 0 < won < games
    for grade, answer in zip(grades, arena(12, ours, theirs), strict=True):
        difference = len(answer.texts[0]) - len(answer.item.fields["baseline"])
        assert grade.score == 0.5 + 0.5 * ((difference > 0) - (difference < 0))
    assert {row["judge"] for row in stored(tmp_path)} == {"scripted-length"}


def test_what_a_judge_only_thinks_is_no_verdict(tmp_path: Path):
    def behave(asked: Asked) -> Reply:
        return Reply(completion(asked, "<think>Is it [[2]]? No.</think>Rating: [[7]]"))

    with serving(behave) as server:
        grades = graded(MTBench(), mt_bench(1), config(server.url), tmp_path)
    assert grades[0].score == 7
    assert all("think" in row["text"] for row in stored(tmp_path))  # kept as it came


def test_probabilities(tmp_path: Path):
    with serving(lambda asked: logprobs(asked, ("M", 0.6), ("m", 0.2), ("I", 0.1))) as server:
        grades = graded(AlpacaEval2(), alpaca(6), config(server.url), tmp_path)
    body = server.asked[0].body
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 5, 1)
    assert {round(grade.score or 0, 9) for grade in grades} == {0.25, 0.75}
    assert {grade.values["binarised"] for grade in grades} == {0.0}
    # Asked again, as after a kill that lost the replies, each question has the seed that it had.
    with serving(lambda asked: logprobs(asked, ("M", 0.6), ("m", 0.2))) as again:
        graded(AlpacaEval2(), alpaca(6), config(again.url), tmp_path / "again")
    seeds = [sorted(asked.body["seed"] for asked in each.asked) for each in (server, again)]
    assert seeds[0] == seeds[1] and len(set(seeds[0])) == len(server.asked)
    # From the store alone, at an address where nobody is.
    assert graded(AlpacaEval2(), alpaca(6), config("http://127.0.0.1:9/v1"), tmp_path) == grades


@pytest.mark.parametrize("refused", [False, True])
def test_without_logprobs_letters_count(tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: bool):
    def behave(asked: Asked) -> Reply:
        if refused and "top_logprobs" in asked.body:
            return Reply({"error": {"message": "logprobs are not supported here"}}, 400)
        return Reply(completion(asked, "m"))

    with serving(behave) as server:
        grades = graded(AlpacaEval2(), alpaca(6), config(server.url, concurrency=1), tmp_path)
    assert len(server.asked) == 6 + refused
    assert {grade.values["binarised"] for grade in grades} == {1.0} and {g.score for g in grades} == {0.0, 1.0}
    assert "6 of 6 replies of scripted-length had no log-probabilities" in capsys.readouterr().err


def test_busy_and_malformed_servers_are_asked_again(tmp_path: Path):
    count = 0

    def behave(asked: Asked) -> Reply:
        nonlocal count
        count += 1
        if count % 3 == 0:
            return Reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "0.01"})
        if count % 5 == 0:
            return Reply(b"<html>")
        return longer_wins(asked)

    answers = arena(10, lambda n: "x" * n, lambda n: "yyyy")
    with serving(behave) as server:
        grades = graded(ArenaHard(), answers, config(server.url, concurrency=1), tmp_path)
    assert all(grade.score is not None for grade in grades)
    assert len(server.asked) > len(stored(tmp_path)) == 20


def test_silent_judges_are_asked_for_a_verdict(tmp_path: Path):
    """Once more, by Arena-Hard's own words; the second reply counts, and both are kept."""

    def behave(asked: Asked) -> Reply:
        return longer_wins(asked) if len(asked.body["messages"]) > 2 else Reply(completion(asked, "Hm."))

    answers = arena(3, lambda n: "longer", lambda n: "short")
    with serving(behave) as server:
        grades = graded(ArenaHard(), answers, config(server.url), tmp_path)
    assert [grade.score for grade in grades] == [1.0] * 3
    assert sorted(row["attempt"] for row in stored(tmp_path)) == [0] * 6 + [1] * 6
    again = [asked.body["messages"][2:] for asked in server.asked if len(asked.body["messages"]) > 2]
    assert [turn["role"] for turn in again[0]] == ["assistant", "user"] and again[0][0]["content"] == "Hm."


def test_a_rating_that_never_comes_is_counted(tmp_path: Path):
    def behave(asked: Asked) -> Reply:
        return Reply(completion(asked, "$ERROR$" if "A1?" in str(asked.body) else "Rating: [[7]]"))

    with serving(behave) as server:
        grades = graded(MTBench(), mt_bench(3), config(server.url), tmp_path)
        asked = len(server.asked)
        assert graded(MTBench(), mt_bench(3), config(server.url), tmp_path) == grades
        assert len(server.asked) == asked == 4 + 2 * 3, "what was given up stays given up"
    assert [grade.score for grade in grades] == [7.0, None, 7.0]
    assert (grades[1].detail or "").startswith("unanswered")


def test_a_refused_answer_is_unknown_and_not_asked_again(tmp_path: Path):
    def behave(asked: Asked) -> Reply:
        if "A1?" in str(asked.body):
            return Reply({"error": {"message": "maximum context length is 8 tokens"}}, 400)
        return Reply(completion(asked, "[[7]]"))

    with serving(behave) as server:
        grades = graded(MTBench(), mt_bench(3), config(server.url), tmp_path)
        assert len(server.asked) == 6
        assert graded(MTBench(), mt_bench(3), config(server.url), tmp_path) == grades
        assert len(server.asked) == 6
    assert grades[1].score is None
    assert (grades[1].detail or "").startswith(
        "unknown: the judge gave no answer: turn 1: refused: status 400: maximum"
    )


def test_malformed_replies_are_asked_for_again_next_time(tmp_path: Path):
    with serving(lambda asked: Reply({"choices": []})) as server:
        grades = graded(MTBench(), mt_bench(1), config(server.url), tmp_path)
    assert "malformed_answer" in (grades[0].detail or "") and stored(tmp_path) == []
    with serving(lambda asked: Reply(completion(asked, "[[7]]"))) as server:
        assert graded(MTBench(), mt_bench(1), config(server.url), tmp_path)[0].score == 7


def test_equal_answers_are_judged_once(tmp_path: Path):
    answers = mt_bench(2)
    twice = [*answers, *(dataclasses.replace(answer, index=1) for answer in answers)]
    with serving(lambda asked: Reply(completion(asked, "[[7]]"))) as server:
        grades = graded(MTBench(), twice, config(server.url), tmp_path)
    assert len(server.asked) == 4 and [grade.score for grade in grades] == [7.0] * 4


def test_another_judge_or_parameter_is_another_judgment(tmp_path: Path):
    with serving(lambda asked: Reply(completion(asked, "[[7]]"))) as server:
        for changes in ({}, {"model": "scripted-seven"}, {"extra_body": {"reasoning_effort": "low"}}, {}):
            graded(MTBench(), mt_bench(1), config(server.url, **changes), tmp_path)
    assert len(server.asked) == 6
    assert server.asked[-1].body["reasoning_effort"] == "low"


def test_later_limits(tmp_path: Path):
    """OpenAI's later models take the limit under another name."""

    def behave(asked: Asked) -> Reply:
        if "max_tokens" in asked.body:
            message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return Reply({"error": {"message": message}}, 400)
        return Reply(completion(asked, "[[7]]"))

    with serving(behave) as server:
        assert graded(MTBench(), mt_bench(1), config(server.url), tmp_path)[0].score == 7
    assert server.asked[-1].body["max_completion_tokens"] == 2048


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            lambda asked: Reply(completion(asked, "[[7]]", model="gpt-x")),
            "scripted-length was asked, and gpt-x answered",
        ),
        (lambda asked: Reply({"error": {"message": "no such key"}}, 401), "status 401: no such key"),
        (
            lambda asked: Reply({"error": {"message": "temperature must be 1"}}, 400),
            "refuses temperature: .*; extra_body: {temperature: null} leaves it out",
        ),
        (lambda asked: Reply({"error": {"message": "busy"}}, 503), "no answer after .* attempts, 0.05 seconds"),
    ],
)
def test_errors(tmp_path: Path, reply: Callable[[Asked], Reply], message: str):
    with serving(reply) as server, pytest.raises(UserError, match=f"^judge scripted-length: http.*{message}"):
        graded(MTBench(), mt_bench(1), config(server.url, patience_seconds=0.05), tmp_path)


def test_keys_stay_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-1234567890")
    with serving(lambda asked: Reply(completion(asked, "[[7]]"))) as server:
        graded(MTBench(), mt_bench(1), config(server.url, api_key_variable="JUDGE_KEY"), tmp_path)
    assert server.asked[0].headers["authorization"] == "Bearer sk-1234567890"
    with serving(lambda asked: Reply(completion(asked, "[[7]] sk-1234567890"))) as server:
        graded(MTBench(), mt_bench(2), config(server.url, api_key_variable="JUDGE_KEY"), tmp_path)
    assert "sk-1234567890" not in json.dumps(stored(tmp_path))
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(UserError, match="JUDGE_KEY is not set"):
        graded(MTBench(), mt_bench(3), config(server.url, api_key_variable="JUDGE_KEY"), tmp_path)


def test_configuration():
    with pytest.raises(pydantic.ValidationError):
        JudgeConfig.model_validate({"url": "http://x/v1", "model": "m", "mode": "completions"})
    with pytest.raises(pydantic.ValidationError):
        JudgeConfig.model_validate({"url": "http://x/v1"})
    assert config("http://user:secret@host/v1").model_dump(mode="json")["url"].count("secret") == 0


KILLED = """
import sys
from pathlib import Path
from tests.data_pipeline.benchmarks.test_judge import arena, config, graded
from data_pipeline.benchmarks.suite.arena_hard import ArenaHard
graded(ArenaHard(), arena(20, lambda n: "x" * n, lambda n: "y" * 10), config(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("after", [1, 23])
def test_a_killed_run_asks_only_for_what_is_missing(tmp_path: Path, after: int):
    child: list[subprocess.Popen] = []
    started = threading.Event()

    def behave(asked: Asked) -> Reply:
        started.wait()
        if len(server.asked) == after + 4:  # So many are under way at most.
            os.kill(child[0].pid, signal.SIGKILL)
        return longer_wins(asked)

    with serving(behave) as server:
        child.append(
            subprocess.Popen(
                [sys.executable, "-c", KILLED, server.url, str(tmp_path)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        )
        started.set()
        assert child[0].wait() == -signal.SIGKILL
    kept = {row["key"] for row in stored(tmp_path)}
    assert after <= len(kept) < 40
    answers = arena(20, lambda n: "x" * n, lambda n: "y" * 10)
    with serving(longer_wins) as server:
        grades = graded(ArenaHard(), answers, config(server.url), tmp_path)
        assert len(server.asked) == 40 - len(kept)
        whole = graded(ArenaHard(), answers, config(server.url), tmp_path / "whole")
    assert grades == whole
    assert sorted(row["key"] for row in stored(tmp_path)) == sorted(row["key"] for row in stored(tmp_path / "whole"))


def test_a_run_asks_again_what_got_malformed_replies(tmp_path: Path):
    """Even where the other game was judged, and although nothing that is asked has changed."""
    broken = True

    def behave(asked: Asked) -> Reply:
        ours_first = "Assistant A's Answer|>\nxx\n" in asked.body["messages"][1]["content"]
        return Reply({"choices": []}) if broken and ours_first else longer_wins(asked)

    with serving(behave) as server:
        judge = {"url": server.url, "model": "scripted-length", "concurrency": 1}
        run = BenchmarkConfig.model_validate(
            {"output_dir": str(tmp_path), "models": {"mine": {"model": "x"}}, "judge": {"default": judge}}
        )
        answers = arena(1, lambda n: "xx", lambda n: "yyyy")

        def row() -> dict[str, Any]:
            return grading.graded(run, ArenaHard(), "mine", answers, "sha").row(0, named=True)

        first = row()
        assert first["games"] and first["detail"].startswith("unknown: the judge gave no answer: baseline second: malf")
        broken = False
        again = row()
        assert again["games"] > first["games"] and again["detail"] is None
        count = len(server.asked)
        assert row() == again and len(server.asked) == count
