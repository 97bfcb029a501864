"""AlpacaEval 2: the leaderboard's digits from its judgments, and everything that leads to a judgment."""

import csv
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.benchmarks import results
from data_pipeline.benchmarks.benchmark import Answer, Item, Judged, Reply
from data_pipeline.benchmarks.grading import frame
from data_pipeline.benchmarks.suite import length_control
from data_pipeline.benchmarks.suite.alpacaeval2 import AlpacaEval2, preferred_first, switched
from fusejax.common.cli import UserError

pytest.importorskip("sklearn", reason="the extra `benchmark`")

BENCHMARK = AlpacaEval2()
BASELINES = ("gpt4_1106_preview_verbose", "gpt4_1106_preview_concise")


def gamed_rows(count: int) -> list[dict]:
    """A made-up `df_gamed.csv`: the longer answer wins."""
    return [
        {
            "index": index,
            "model": model,
            "preference": preference,
            "std_delta_len": delta * (1 + index % 3),
            "instruction_difficulty": (index % 5) / 5,
        }
        for model, preference, delta in zip(BASELINES, (0.65, 0.3), (-1.0, 1.0), strict=True)
        for index in range(count)
    ]


def items(count: int) -> list[Item]:
    rows = [{"instruction": f"Say {n}.", "output": "four " * (n % 7 + 1), "dataset": "x"} for n in range(count)]
    return BENCHMARK.items({"alpacaeval2": rows, "alpacaeval2_gamed": gamed_rows(count)})


def answer(item: Item, text: str) -> Answer:
    return Answer(item, 0, (text,), ("stop",), 3)


def table(pairs: list[tuple[Item, float | None]], lengths: list[int]) -> pl.DataFrame:
    """Grades as judged by these preferences for ours, of answers of these lengths."""
    rows = []
    for (item, preference), length in zip(pairs, lengths, strict=True):
        top: tuple[tuple[str, float], ...] = (("x", 0.0),)
        if preference is not None:
            first = preference if switched(item.fields["instruction"]) else 1 - preference
            top = tuple((name, math.log(p)) for name, p in (("m", first), ("M", 1 - first)) if p)
        grade = BENCHMARK.judged(answer(item, "x" * length), {"comparison": [Reply("m", "stop", top)]})
        rows.append({"id": item.id, "index": 0, "score": grade.score, **grade.values})
    return pl.DataFrame(rows, schema_overrides={"score": pl.Float64})


def leaderboard(folder: Path, model: str) -> pl.DataFrame:
    """Grades of a published model: as this benchmark's, of answers and outputs of the published lengths."""
    with (folder / "alpacaeval_df_gamed.csv").open() as file:
        gamed = list(csv.DictReader(file))
    with (folder / f"alpacaeval_{model}.csv").open() as file:
        judged = list(csv.DictReader(file))
    outputs = [
        {"instruction": f"{n}", "output": "x" * int(row["length_baseline"]) or "x", "dataset": ""}
        for n, row in enumerate(judged)
    ]
    found = BENCHMARK.items({"alpacaeval2": outputs, "alpacaeval2_gamed": gamed})
    rows = []
    for item, row in zip(found, judged, strict=True):
        grade = BENCHMARK.judged(
            answer(item, "y" * int(row["length_model"])), {"comparison": [Reply("", "stop", (("m", 0.0),))]}
        )
        rows.append({"id": item.id, "index": 0, **grade.values, "score": float(row["preference"]) - 1})
    return pl.DataFrame(rows)


@pytest.mark.parametrize(
    ("model", "controlled", "raw"),
    [
        ("Llama-3.1-8B", 65.38623116037492, 63.33158292362734),
        ("Qwen-2.5-7B", 63.58298649463735, 64.64069997299381),
        ("Gemma-2-9B", 70.18106263911686, 70.49713534560247),
        ("Llama-3.2-3B", 53.99883748344241, 51.29667710101864),
        ("Llama-3.2-1B", 25.27098247880791, 29.9219322658882),
    ],
)
def test_leaderboard(eval_data: Path, model: str, controlled: float, raw: float):
    """Of the rows in whatever order."""
    rows = leaderboard(eval_data, f"FuseChat-{model}-Instruct").sample(fraction=1, shuffle=True, seed=3)
    ones = np.ones(len(rows))
    assert BENCHMARK.score(rows, ones) == pytest.approx(controlled, abs=1e-6)
    assert BENCHMARK.details(rows, ones) == {"win rate": pytest.approx(raw, abs=1e-6)}


def test_properties_with_the_real_difficulties(eval_data: Path):
    """The gamed baselines pull a little: indifference is not quite 50, mirror images do not quite add up to 100."""
    rows = leaderboard(eval_data, "FuseChat-Llama-3.2-3B-Instruct")
    ones = np.ones(len(rows))
    assert BENCHMARK.score(rows.with_columns(score=pl.lit(0.5)), ones) == pytest.approx(50.834, abs=0.001)
    same = rows.with_columns(score=pl.lit(0.5), length=pl.col("baseline_length"))
    assert BENCHMARK.score(same, ones) == 50
    nearly = same.with_columns(score=pl.Series([0.501, *[0.5] * (len(rows) - 1)]))
    assert BENCHMARK.score(nearly, ones) == pytest.approx(49.994, abs=0.001)
    mirrored = rows.with_columns(score=1 - pl.col("score"), length="baseline_length", baseline_length="length")
    assert BENCHMARK.score(rows, ones) + BENCHMARK.score(mirrored, ones) == pytest.approx(99.816, abs=0.001)


def test_orders_are_drawn_for_good():
    """Another draw would be another judgment. That these are the leaderboard's draws was checked against its code."""
    assert [switched(text) for text in ("Say 0.", "Say 1.", "Say 2.", "Say 3.", "什么？", "")] == [
        *(True, False, True, True),
        *(True, False),
    ]


def test_weights_are_counts(monkeypatch: pytest.MonkeyPatch):
    """An answer that counts thrice is that answer three times, but for the regularisation, which stays: so here."""
    monkeypatch.setattr(length_control, "_cross_validated", lambda *_: 1.0)
    pairs = [(item, 0.2 + 0.15 * (n % 5) + (n * 37 % 11) / 60) for n, item in enumerate(items(400))]
    rows = table(pairs, [5 + 3 * (n % 5) ** 2 + n * 7 % 40 for n in range(400)])
    ones = np.ones(400)
    scorer = BENCHMARK.prepare(rows)
    assert scorer(ones) == BENCHMARK.score(rows, ones)
    weights = np.where(np.arange(400) % 5 < 2, 3.0, 1.0)
    repeated = rows[np.repeat(np.arange(400), weights.astype(int))]
    drawn = scorer(weights)
    assert drawn == pytest.approx(BENCHMARK.score(repeated, np.ones(len(repeated))), abs=0.01)
    assert drawn < scorer(ones) - 5
    assert BENCHMARK.details(rows, weights)["win rate"] == pytest.approx(100 * repeated["score"].mean())
    shuffled = np.random.default_rng(0).permutation(400)
    assert BENCHMARK.prepare(rows[shuffled])(weights[shuffled]) == pytest.approx(drawn, abs=1e-9)


def test_equal_lengths_have_no_effect():
    """Where the original divides by zero."""
    found = items(40)
    lengths = [len(item.fields["output"]) for item in found]
    rows = table([(item, 0.8) for item in found], lengths)
    assert BENCHMARK.score(rows, np.ones(40)) == pytest.approx(80, abs=3)


def test_longer_answers_win_less():
    """Preferences that only the length explains are taken out of the score."""
    found = items(60)
    long = table([(item, 0.8) for item in found], [150 + 10 * (n % 7) for n in range(60)])
    assert BENCHMARK.score(long, np.ones(60)) < BENCHMARK.details(long, np.ones(60))["win rate"]


def test_answers_without_a_judgment():
    found = items(40)
    judged = [(item, 0.7 if n % 4 else None) for n, item in enumerate(found)]
    rows = table(judged, [10 + n for n in range(40)])
    assert rows["score"].null_count() == 10
    assert 50 < BENCHMARK.score(rows, np.ones(40)) < 90
    assert BENCHMARK.details(rows, np.ones(40))["win rate"] == pytest.approx(70)
    assert math.isnan(BENCHMARK.score(rows.with_columns(score=pl.lit(None, pl.Float64)), np.ones(40)))


def test_what_the_judge_sees():
    found = items(12)
    assert len({switched(item.fields["instruction"]) for item in found}) == 2
    for item in found:
        (call,) = BENCHMARK.calls(answer(item, "ours, with {output_2} in it"))
        assert (call.max_tokens, call.top_logprobs) == (1, 5)
        user = call.messages[1]["content"]
        names = {"m": user.index('"m"'), "M": user.index('"M"')}
        texts = {"ours": user.index("ours, with {output_2}"), "theirs": user.index(f'"{item.fields["output"]}"')}
        assert (texts["ours"] < names["M"]) == switched(item.fields["instruction"])
        assert names["m"] < min(texts.values()) < names["M"] < max(texts.values())
        assert f'"instruction": """{item.fields["instruction"]}"""' in user


def test_the_baselines_own_answer_is_a_tie_without_a_question():
    (item,) = items(1)
    same = answer(item, item.fields["output"])
    assert BENCHMARK.calls(same) == []
    assert BENCHMARK.judged(same, {}).score == 0.5


@given(st.tuples(st.integers(-30, 0), st.integers(-30, 0)), st.text(max_size=20))
def test_exchanged_letters_exchange_the_preference(logprobs: tuple[int, int], instruction: str):
    one, other = logprobs
    item = items(1)[0]
    item.fields["instruction"] = instruction
    grades = [
        BENCHMARK.judged(answer(item, "x"), {"comparison": [Reply("m", "stop", (("m", a), ("M", b)))]})
        for a, b in ((one, other), (other, one))
    ]
    assert grades[0].score + grades[1].score == pytest.approx(1)
    assert (grades[0].score >= 0.5) == ((one >= other) == switched(instruction)) or one == other


def test_letters_are_counted():
    (item,) = items(1)
    ours = "m" if switched(item.fields["instruction"]) else "M"
    grade = BENCHMARK.judged(answer(item, "x"), {"comparison": [Reply(ours, "length")]})
    assert (grade.score, grade.extracted, grade.values["binarised"]) == (1.0, ours, 1.0)
    rows = pl.DataFrame([{"score": grade.score, "binarised": each} for each in (1.0, 0.0)])
    assert BENCHMARK.details(rows, np.ones(2)) == {"win rate": 100, "binarised": 0.5}
    other = BENCHMARK.judged(answer(item, "x"), {"comparison": [Reply("Both are good", "length")]})
    assert other.score is None and other.detail is not None and other.detail.startswith("unanswered")
    assert other.values.keys() == grade.values.keys()


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply("m", "stop", (("m", math.log(0.9)),)), 1.0),
        (Reply("M", "stop", (("M", math.log(0.3)), ("m", math.log(0.1)))), 0.25),
        (Reply("A", "stop", (("A", 0.0), ("B", -1.0))), None),
        (Reply('"M"', "stop"), 0.0),
        (Reply("model m", "stop"), None),
    ],
)
def test_preferences(reply: Reply, expected: float | None):
    assert preferred_first(reply)[0] == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("family", ["llama", "qwen", "gemma", "other"])
def test_prompts(family: str):
    (item,) = items(1)
    clean = BENCHMARK.prompt(item, family, "clean", ())
    assert clean.messages == ({"role": "user", "content": "Say 0."},) and not clean.text
    theirs = BENCHMARK.prompt(item, family, "fusechat3", ())
    if family == "other":
        assert theirs == clean
    else:
        assert not theirs.messages and theirs.text.count("Say 0.") == 1
        assert theirs.bos_again == (family == "llama")
    assert theirs.text.startswith(
        {"llama": "<|begin_of_text|><|start_header_id|>user", "gemma": "<bos>"}.get(family, "")
    )


def test_errors_name_what_is_missing():
    rows = [{"instruction": "Say.", "output": "four", "dataset": "x"}]
    with pytest.raises(UserError, match=r"alpacaeval2_gamed: no row of .* with index 0"):
        BENCHMARK.items({"alpacaeval2": rows, "alpacaeval2_gamed": gamed_rows(1)[:1]})
    with pytest.raises(UserError, match="alpacaeval2: row 1: no text in output; its columns are instruction"):
        BENCHMARK.items({"alpacaeval2": [{"instruction": "Say."}], "alpacaeval2_gamed": gamed_rows(1)})


def test_it_is_a_judged_benchmark():
    assert isinstance(BENCHMARK, Judged)


def test_the_judges_prompt(eval_data: Path):
    (item,) = items(1)
    (call,) = BENCHMARK.calls(answer(item, "ours"))
    first, second = ("ours", item.fields["output"]) if switched("Say 0.") else (item.fields["output"], "ours")
    published = (eval_data / "prompts" / "alpaca_eval_clf.txt").read_text()
    for place, text in (("{instruction}", "Say 0."), ("{output_1}", first), ("{output_2}", second)):
        published = published.replace(place, text)
    turns = [part.split("\n", 1) for part in published.split("<|im_start|>")[1:]]
    theirs = [{"role": role, "content": text.split("<|im_end|>")[0].strip()} for role, text in turns]
    assert list(call.messages) == theirs


@pytest.mark.parametrize("count", [1, 8])
def test_few_answers_that_all_won(count: int):
    """No traceback of too few folds, and no interval of a point."""
    answers = [Answer(item, 0, ("yes",), ("stop",), 1) for item in items(count)]
    letters = ["m" if switched(answer.item.fields["instruction"]) else "M" for answer in answers]
    grades = [
        BENCHMARK.judged(answer, {"comparison": [Reply(letter, "stop")]})
        for answer, letter in zip(answers, letters, strict=True)
    ]
    found = results.interval(BENCHMARK, frame(answers, grades), 20, 0)
    assert found.value >= 50 and (np.isnan(found.low) or found.high - found.low > 30)
