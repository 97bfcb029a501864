"""Arena-Hard: the leaderboard's numbers from its battles, and the way to them."""

import csv
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.benchmarks.benchmark import Answer, Item, Judged, Reply
from data_pipeline.benchmarks.suite.arena_hard import _GO_ON, _SYSTEM, _USER, ArenaHard, points, verdicts
from fusejax.common.cli import UserError

BENCHMARK = ArenaHard()
VERDICTS = ("A>>B", "A>B", "A=B", "B>A", "B>>A")
MIRRORED = dict(zip(VERDICTS, reversed(VERDICTS), strict=True))


def rows(count: int = 2) -> dict[str, list[dict]]:
    return {
        "arena_hard": [{"question_id": f"q{n}", "turns": [{"content": f"Say {n}."}]} for n in range(count)],
        "arena_hard_baseline": [
            {"question_id": f"q{n}", "choices": [{"index": 0, "turns": [{"content": f"theirs {n}"}]}]}
            for n in range(count)
        ],
    }


def answer(item: Item, text: str = "ours") -> Answer:
    return Answer(item, 0, (text,), ("stop",), 3)


def judged(first: str, second: str, item: Item | None = None):
    """The grade of these verdicts on the games with the baseline first and second."""
    replies = {"baseline first": [Reply(f"[[{first}]]", "stop")], "baseline second": [Reply(f"[[{second}]]", "stop")]}
    return BENCHMARK.judged(answer(item or BENCHMARK.items(rows())[0]), replies)


def table(pairs: list[tuple[str, str]]) -> pl.DataFrame:
    return pl.DataFrame([dict(judged(*pair).values) for pair in pairs])


def fitted(frame: pl.DataFrame) -> float:
    """Bradley-Terry of two models by logistic regression, without regularisation, as the leaderboard fits it."""
    linear_model = pytest.importorskip("sklearn.linear_model", reason="the extra `benchmark`")
    won, lost = frame["won"].sum(), (frame["games"] - frame["won"]).sum()
    model = linear_model.LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10)
    model.fit([[1.0], [1.0]], [1, 0], sample_weight=[won, lost])
    return 100 * model.predict_proba([[1.0]])[0, 1]


@pytest.mark.parametrize(
    ("model", "games", "score"), [("gpt-3.5-turbo-0125", 1414, 23.34), ("gpt-4-0613", 1244, 37.90)]
)
def test_leaderboard(eval_data: Path, model: str, games: int, score: float):
    """A battle there is a game that counts once."""
    with (eval_data / "arena_hard_battles.tsv").open() as file:
        winners = [row["winner"] for row in csv.DictReader(file, delimiter="\t") if row["model"] == model]
    won = [{"model": 1.0, "tie": 0.5, "baseline": 0.0}[winner] for winner in winners]
    frame = pl.DataFrame({"won": won, "games": [1.0] * len(won)})
    assert len(frame) == games
    assert BENCHMARK.score(frame, np.ones(games)) == pytest.approx(score, abs=0.005)
    assert BENCHMARK.score(frame, np.ones(games)) == pytest.approx(fitted(frame), abs=1e-4)


def test_recorded_judgments(eval_data: Path):
    found = []
    for line in (eval_data / "arena_hard_judgments_gpt4o.jsonl").read_text().splitlines():
        for game in json.loads(line)["games"]:
            found.append((verdicts([Reply(game["judgment"], "stop")]), [game["score"]]))
    assert len(found) == 18
    assert all(ours == theirs for ours, theirs in found)


def test_the_judges_prompt(eval_data: Path):
    published = yaml.safe_load((eval_data / "prompts" / "arena_hard_judge_config.yaml").read_text())
    assert published["system_prompt"] == _SYSTEM
    named = _USER.replace("{question}", "{question_1}").replace("{first}", "{answer_1}")
    assert published["prompt_template"] == [named.replace("{second}", "{answer_2}")]


def test_real_questions(eval_data: Path):
    questions = [json.loads(line) for line in (eval_data / "arena_hard_question.jsonl").read_text().splitlines()]
    baseline = [{**row, "choices": [{"turns": [{"content": "x"}]}]} for row in questions]
    assert len({item.id for item in BENCHMARK.items({"arena_hard": questions, "arena_hard_baseline": baseline})}) == 500


@given(st.lists(st.tuples(st.sampled_from(VERDICTS), st.sampled_from(VERDICTS)), min_size=1))
def test_closed_form(pairs: list[tuple[str, str]]):
    """The fit's maximum; and model and baseline exchanged have exactly the rest of 100."""
    frame = table(pairs)
    ones = np.ones(len(pairs))
    ours = BENCHMARK.score(frame, ones)
    # Exchanged, the judge sees the same two prompts: what was the first game is the second.
    theirs = BENCHMARK.score(table([(second, first) for first, second in pairs]), ones)
    assert ours + theirs == pytest.approx(100, abs=1e-12)
    won, lost = frame["won"].sum(), (frame["games"] - frame["won"]).sum()
    strength = ours / 100
    assert strength == pytest.approx(won / (won + lost))
    assert won * (1 - strength) == pytest.approx(lost * strength, abs=1e-9), "the gradient of the likelihood"


@given(st.sampled_from(VERDICTS), st.integers(1, 5))
def test_weights_are_counts(verdict: str, times: int):
    pairs = [("A>B", "B>>A"), (verdict, "A=B"), ("B>A", "B>A")]
    weights = np.array([1.0, times, 0.0])
    repeated = table([pairs[0], *[pairs[1]] * times])
    assert BENCHMARK.score(table(pairs), weights) == pytest.approx(BENCHMARK.score(repeated, np.ones(times + 1)))


def test_both_orders_are_asked():
    item, other = BENCHMARK.items(rows())
    first, second = BENCHMARK.calls(answer(item, "ours {question}"))
    texts = [call.messages[1]["content"] for call in (first, second)]
    assert [text.index("theirs 0") < text.index("ours {question}") for text in texts] == [True, False]
    assert all(text.startswith("<|User Prompt|>\nSay 0.\n\n") for text in texts)
    exchanged = Item(item.id, {**item.fields, "baseline": "ours {question}"})
    again = BENCHMARK.calls(answer(exchanged, "theirs 0"))
    assert [call.messages for call in again] == [second.messages, first.messages]
    assert {call.temperature for call in again} == {0.0} and other.id == "q1"


def test_who_won():
    assert judged("A>B", "A>B").score == 0.5  # The baseline's game, then ours.
    clear = judged("B>>A", "B>A")
    assert (clear.score, clear.values, clear.extracted) == (0.0 + 0.75, {"won": 3, "games": 4}, "B>>A, B>A")
    assert [points(verdict, "A") for verdict in VERDICTS] == [(3, 3), (1, 1), (0.5, 1), (0, 1), (0, 3)]
    assert all(points(MIRRORED[verdict], "B") == points(verdict, "A") for verdict in VERDICTS)


def test_no_verdict_is_asked_for_once_more():
    (call, _) = BENCHMARK.calls(answer(BENCHMARK.items(rows())[0]))
    silent = Reply("I like both.", "length")
    more = BENCHMARK.again(call, [silent])
    assert more is not None and more.messages[:2] == call.messages
    assert more.messages[2:] == ({"role": "assistant", "content": "I like both."}, {"role": "user", "content": _GO_ON})
    assert BENCHMARK.again(call, [silent, silent]) is None
    assert BENCHMARK.again(call, [Reply("[[A>B]]", "stop")]) is None
    assert BENCHMARK.again(call, [Reply("[[A>B]] or [[B>A]]", "stop")]) is None
    replies = {"baseline first": [silent, Reply("[[B>A]]", "stop")], "baseline second": [silent, silent]}
    grade = BENCHMARK.judged(answer(BENCHMARK.items(rows())[0]), replies)
    assert (grade.score, grade.values, grade.extracted) == (1.0, {"won": 1, "games": 1}, "B>A, none")
    assert grade.detail == "unanswered: no verdict with the baseline second"
    lost = BENCHMARK.judged(answer(BENCHMARK.items(rows())[0]), {name: [silent, silent] for name in replies})
    assert lost.score is None and lost.values == {"won": 0, "games": 0} and (lost.detail or "").endswith("second")
    two = judged("A>B]] or [[B>A", "A<B")
    assert two.values == {"won": 0, "games": 0} and two.extracted == "A>B and B>A, A<B"
    assert np.isnan(BENCHMARK.score(pl.DataFrame([lost.values]), np.ones(1)))


def test_errors_name_what_is_missing():
    lacking = rows()
    lacking["arena_hard_baseline"].pop()
    with pytest.raises(UserError, match="arena_hard_baseline: no answer to question q1"):
        BENCHMARK.items(lacking)
    with pytest.raises(UserError, match="arena_hard: row 1: turns is no list"):
        BENCHMARK.items({**rows(), "arena_hard": [{"question_id": "q0", "turns": "Say."}]})
    assert isinstance(BENCHMARK, Judged)
