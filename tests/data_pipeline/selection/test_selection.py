"""Each clause of the selection rules, on tables small enough to check by eye."""

import math
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_pipeline.domains import DEFAULTS
from data_pipeline.selection import rules as selection
from data_pipeline.selection.rules import Bounds, Margin, OneSource, Quantile, VerdictBoth, VerdictPairs

RULES = {name: domain.rule for name, domain in DEFAULTS.items()}

NAMES = ["source", "reward", "verdict", "finish_reason", "text"]


def candidates(rows: list[tuple[Any, ...]], domain: str, prompt: str = "p", dataset: str = "d") -> pl.DataFrame:
    """Rows of (source, reward[, verdict[, finish_reason[, text]]]); sample indices count within a source."""
    counts: dict[str, int] = {}
    table = []
    for row in rows:
        values = dict(zip(NAMES, row, strict=False))
        index = counts[values["source"]] = counts.get(values["source"], -1) + 1
        text = values.get("text", f"{values['source']}{index}")
        table.append(
            {
                "prompt_id": prompt,
                "dataset": dataset,
                "domain": domain,
                "source": values["source"],
                "sample_index": index,
                "finish_reason": values.get("finish_reason", "stop"),
                "text_hash": hash(text) % 2**32 if text.strip() else None,
                "reward": values["reward"],
                "verdict": values.get("verdict"),
            }
        )
    schema = {"reward": pl.Float64, "verdict": pl.String, "text_hash": pl.UInt64, "sample_index": pl.Int64}
    return pl.DataFrame(table, schema_overrides=schema)


def select(frame: pl.DataFrame, seed: int = 0, **rules: Any) -> selection.Selected:
    prompts = frame.select(pl.col("prompt_id").alias("id"), "dataset", "domain").unique("id")
    return selection.select(prompts, frame, RULES | rules, seed)


def many_prompts(count: int) -> pl.DataFrame:
    """Prompts p0, p1, ... with a valid pair each."""
    one = candidates([("a", 0.15), ("a", 0.1)], "instruction")
    return pl.concat([one.with_columns(prompt_id=pl.lit(f"p{n}")) for n in range(count)])


def pair(selected: selection.Selected) -> tuple[Any, ...] | None:
    """(source, chosen index, rejected index) of the only pair."""
    assert len(selected.dpo) <= 1
    for row in selected.dpo.iter_rows(named=True):
        assert row["chosen_source"] == row["rejected_source"]
        return row["chosen_source"], row["chosen_sample_index"], row["rejected_sample_index"]
    return None


def reasons(selected: selection.Selected) -> list[tuple[str, str]]:
    return list(selected.discarded.select("stage", "reason").iter_rows())


ALL_DPO = {"instruction": Margin(sft_fraction=0.0)}
ALL_SFT = {"instruction": Margin(sft_fraction=1.0)}


class TestInstruction:
    def test_pair_is_one_sources_best_against_its_worst(self):
        rows = [("a", 0.12), ("a", 0.15), ("a", 0.11), ("b", 0.01)]
        assert pair(select(candidates(rows, "instruction"), **ALL_DPO)) == ("a", 1, 2)

    def test_never_across_sources(self):
        rows = [("a", 0.15), ("b", 0.10)]
        assert reasons(select(candidates(rows, "instruction"), **ALL_DPO)) == [("select", "one_answer")]

    @pytest.mark.parametrize(
        ("best", "worst", "valid"),
        [
            (0.12, 0.11, True),  # 0.00999... in binary: the lower bound is inclusive all the same.
            (0.3, 0.2, True),  # 0.0999...
            (0.15, 0.05, True),
            (0.119999, 0.11, False),
            (0.150001, 0.05, False),
            (0.13, 0.13, False),
        ],
    )
    def test_bounds_are_inclusive(self, best: float, worst: float, valid: bool):
        selected = select(candidates([("a", best), ("a", worst)], "instruction"), **ALL_DPO)
        assert (pair(selected) == ("a", 0, 1)) == valid
        assert len(selected.dpo) + len(selected.discarded) == 1

    def test_a_source_beyond_the_bounds_leaves_it_to_the_next(self):
        rows = [("a", 0.30), ("a", 0.01), ("b", 0.12), ("b", 0.08)]
        assert pair(select(candidates(rows, "instruction"), **ALL_DPO)) == ("b", 0, 1)

    def test_pair_source(self):
        rows = [("a", 0.15), ("a", 0.13), ("b", 0.14), ("b", 0.06), ("c", 0.145), ("c", 0.12)]
        frame = candidates(rows, "instruction")

        def chosen(pair_source: str, seed: int = 0) -> str:
            rule = Margin(sft_fraction=0.0, pair_source=pair_source)
            found = pair(select(frame, seed, instruction=rule))
            assert found is not None
            return found[0]

        assert chosen("best") == "a"
        assert chosen("widest") == "b"
        drawn = [chosen("random", seed) for seed in range(40)]
        assert set(drawn) == {"a", "b", "c"}
        assert drawn == [chosen("random", seed) for seed in range(40)]

    def test_sft_takes_the_best_of_all_sources(self):
        rows = [("a", 0.12), ("a", 0.10), ("b", 0.16), ("c", 0.14)]
        selected = select(candidates(rows, "instruction"), **ALL_SFT)
        assert selected.sft.select("source", "sample_index", "reward").rows() == [("b", 0, 0.16)]
        assert selected.dpo.is_empty() and selected.discarded.is_empty()

    def test_ties_are_broken_by_the_seed_in_any_row_order(self):
        frame = candidates([(source, reward) for source in "abc" for reward in (0.15, 0.15, 0.1, 0.1)], "instruction")
        seen = set()
        for seed in range(40):
            orders = [frame.sample(fraction=1, shuffle=True, seed=order) for order in range(3)]
            found = {
                (pair(select(order, seed, **ALL_DPO)), *select(order, seed, **ALL_SFT).sft.row(0)) for order in orders
            }
            assert len(found) == 1
            seen |= found
        chosen = {row[0][:2] for row in seen if row[0]}
        assert chosen == {(source, index) for source in "abc" for index in (0, 1)}
        assert {row[0][2] for row in seen if row[0]} == {2, 3}
        assert {row[4] for row in seen} == set("abc")

    def test_of_equal_rewards_throughout_two_different_answers_make_the_pair(self):
        rule = Margin(sft_fraction=0.0, min_margin=0.0)
        for seed in range(10):
            found = pair(select(candidates([("a", 0.1), ("a", 0.1)], "instruction"), seed, instruction=rule))
            assert found is not None and {found[1], found[2]} == {0, 1}

    def test_equal_texts_make_no_pair(self):
        rows = [("a", 0.15, None, "stop", "same"), ("a", 0.1, None, "stop", "same")]
        assert reasons(select(candidates(rows, "instruction"), **ALL_DPO)) == [("select", "equal_texts")]

    @pytest.mark.parametrize(
        ("rows", "reason"),
        [
            ([("a", 0.15), ("b", 0.15), ("b", 0.149)], "margin_too_small"),
            ([("a", 0.15), ("a", 0.149), ("b", 0.3), ("b", 0.1)], "margin_too_wide"),
            ([("a", 0.2), ("b", 0.2, None, "stop", "x"), ("b", 0.1, None, "stop", "x")], "equal_texts"),
        ],
    )
    def test_a_prompt_without_pair_has_the_reason_of_its_furthest_source(self, rows: list[Any], reason: str):
        assert reasons(select(candidates(rows, "instruction"))) == [("select", reason)]

    def test_bounds_can_be_quantiles_of_the_margins(self):
        """Of ten prompts with margins of 1 to 10; what is no margin, equal texts and single answers, does not count."""
        frames = [candidates([("a", n + 1.0), ("a", 0.0)], "instruction", prompt=f"p{n}") for n in range(10)]
        same = [("a", 99.0, None, "stop", "same"), ("a", 0.0, None, "stop", "same"), ("b", 1.0)]
        frames.append(candidates(same, "instruction", prompt="none"))
        for low, high, kept in [
            (0.3, 0.7, range(3, 8)), (0.25, 0.75, range(3, 9)), (0, 1, range(1, 11)), (0.0, 0.05, [1]), (1, 1, [10]),
        ]:  # fmt: skip
            rule = Margin(
                sft_fraction=0.0, min_margin=Quantile(quantile=float(low)), max_margin=Quantile(quantile=float(high))
            )
            selected = select(pl.concat(frames), instruction=rule)
            assert sorted(selected.dpo["margin"]) == list(kept)
            assert selected.bounds["instruction"] == Bounds(kept[0], kept[-1], 10)
        mixed = Margin(sft_fraction=0.0, min_margin=8.5, max_margin=Quantile(quantile=0.9))
        assert select(pl.concat(frames), instruction=mixed).dpo["margin"].to_list() == [9]
        nothing = select(frames[-1], instruction=mixed)
        assert nothing.bounds["instruction"] == Bounds(8.5, None, 0)

    def test_split_is_the_fraction_to_chance_and_differs_by_seed(self):
        frame = many_prompts(4000)
        selected = select(frame)
        assert len(selected.sft) + len(selected.dpo) == 4000
        assert not set(selected.sft["prompt_id"]) & set(selected.dpo["prompt_id"])
        assert abs(len(selected.sft) / 4000 - 0.4) < 4 * math.sqrt(0.4 * 0.6 / 4000)
        both = set(select(frame, seed=1).sft["prompt_id"]) & set(selected.sft["prompt_id"])
        assert abs(len(both) / 4000 - 0.16) < 4 * math.sqrt(0.16 * 0.84 / 4000)

    def test_added_prompts_and_answers_move_no_other_prompt(self):
        frame = many_prompts(300)
        sides = set(select(frame.head(200)).sft["prompt_id"])
        with_all = select(frame)
        old = set(frame.head(200)["prompt_id"])
        assert len(old) == 100 and set(with_all.sft["prompt_id"]) & old == sides
        wider = candidates([("b", 0.2), ("b", 0.16)], "instruction", "p0")
        more = select(pl.concat([frame, wider]))
        assert set(more.sft["prompt_id"]) == set(with_all.sft["prompt_id"])
        kept = pl.col("prompt_id") != "p0"
        assert more.sft.filter(kept).equals(with_all.sft.filter(kept))
        assert more.dpo.filter(kept).equals(with_all.dpo.filter(kept))

    @pytest.mark.parametrize(("best", "worst"), [(0.15, 0.05), (0.12, 0.11), (0.3, 0.2)])
    def test_bounds_are_inclusive_for_float32_rewards(self, best: float, worst: float):
        frame = candidates([("a", float(np.float32(best))), ("a", float(np.float32(worst)))], "instruction")
        assert pair(select(frame, **ALL_DPO)) == ("a", 0, 1)
        assert pair(select(frame.with_columns(pl.col("reward").cast(pl.Float32)), **ALL_DPO)) == ("a", 0, 1)


class TestMath:
    def test_pair_is_best_correct_against_worst_wrong_of_one_source(self):
        rows = [
            ("a", 0.11, "correct"),
            ("a", 0.14, "correct"),
            ("a", 0.13, "wrong"),
            ("a", 0.1, "wrong"),
            ("b", 0.05, "wrong"),
        ]
        selected = select(candidates(rows, "math"))
        assert pair(selected) == ("a", 1, 3)
        assert selected.sft.is_empty()  # Pairs first: the prompt is used up.

    def test_left_over_prompts_serve_sft(self):
        rows = [("a", 0.11, "correct"), ("b", 0.14, "correct"), ("c", 0.2, "wrong")]
        selected = select(candidates(rows, "math"))
        assert selected.dpo.is_empty()
        assert selected.sft["source"].to_list() == ["b"]

    def test_a_margin_out_of_bounds_leaves_the_prompt_to_sft(self):
        selected = select(candidates([("a", 0.15, "correct"), ("a", 0.149, "wrong")], "math"))
        assert (len(selected.sft), len(selected.dpo)) == (1, 0)

    def test_the_wrong_one_with_the_higher_reward_makes_no_pair(self):
        selected = select(candidates([("a", 0.10, "correct"), ("a", 0.15, "wrong")], "math"))
        assert (len(selected.sft), len(selected.dpo)) == (1, 0)

    def test_all_right(self):
        selected = select(candidates([("a", 0.15, "correct"), ("a", 0.1, "correct")], "math"))
        assert (len(selected.sft), len(selected.dpo), len(selected.discarded)) == (1, 0, 0)

    def test_all_wrong(self):
        selected = select(candidates([("a", 0.15, "wrong"), ("a", 0.1, "wrong")], "math"))
        assert selected.sft.is_empty() and selected.dpo.is_empty()
        assert reasons(selected) == [("select", "no_correct_answer")]

    def test_unknown_is_neither_chosen_nor_rejected(self):
        rows = [("a", 0.2, "unknown"), ("a", 0.15, "correct"), ("a", 0.12, "wrong"), ("a", 0.01, "unknown")]
        assert pair(select(candidates(rows, "math"))) == ("a", 1, 2)
        selected = select(candidates([("a", 0.15, "correct"), ("a", 0.1, "unknown")], "math"))
        assert (selected.sft["sample_index"].to_list(), len(selected.dpo)) == ([0], 0)

    def test_a_reason_says_what_is_missing(self):
        def why(*rows: tuple, domain: str = "math", **rules: Any) -> str:
            ((_, reason),) = reasons(select(candidates(list(rows), domain), **rules))
            return reason

        assert why(("a", 0.15, "unknown"), ("a", 0.1, None)) == "no_verdict"
        assert why(("a", 0.15, "unknown"), ("a", 0.1, "wrong")) == "no_correct_answer"
        assert why(("a", None, "correct"), ("a", 0.1, "wrong")) == "correct_without_reward"
        assert why(("a", math.nan, "correct"), ("a", 0.1, "unknown")) == "correct_without_reward"
        assert why(("a", 0.2, "correct", "length"), ("a", 0.1, "wrong"), domain="code") == "correct_unusable"
        assert why(("a", None, "unknown"), ("a", 0.1, "wrong")) == "no_correct_answer"
        assert why(("a", 0.1), ("a", None), domain="instruction", **ALL_DPO) == "one_reward"
        assert why(("a", 0.1), ("a", 0.2, None, "length"), domain="instruction", **ALL_DPO) == "one_answer"
        assert why(("a", 0.1), ("b", 0.2), domain="instruction", **ALL_DPO) == "one_answer"
        assert why(("a", None, None, "error")) == "no_answer"
        assert why(("a", None, None, "error"), ("a", 0.1, None, "length")) == "no_usable_answer"

    def test_pair_source(self):
        rows = [("a", 0.15, "correct"), ("a", 0.14, "wrong"), ("b", 0.14, "correct"), ("b", 0.05, "wrong")]
        frame = candidates(rows, "math")
        assert pair(select(frame)) == ("a", 0, 1)
        assert pair(select(frame, math=VerdictPairs(pair_source="widest"))) == ("b", 0, 1)


class TestCode:
    def test_no_pair_of_which_the_wrong_one_has_the_higher_reward(self):
        frame = candidates([("a", 0.11, "correct"), ("a", 0.9, "wrong")], "code")
        assert select(frame).dpo.is_empty() and len(select(frame).sft) == 1
        assert pair(select(frame, code=VerdictBoth(min_margin=None))) == ("a", 0, 1)
        assert pair(select(candidates([("a", 0.5, "correct"), ("a", 0.5, "wrong")], "code"))) == ("a", 0, 1)

    def test_serves_sft_and_dpo_however_wide_the_margin(self):
        rows = [("a", 0.11, "correct"), ("a", 0.9, "correct"), ("a", 0.95, "wrong"), ("a", 0.2, "wrong")]
        selected = select(candidates(rows, "code"))
        assert pair(selected) == ("a", 1, 3)
        assert selected.sft.select("source", "sample_index").rows() == [("a", 1)]

    def test_margin_when_asked_for(self):
        rows = [("a", 0.9, "correct"), ("a", 0.2, "wrong")]
        selected = select(candidates(rows, "code"), code=VerdictBoth(min_margin=0.01, max_margin=0.1))
        assert (len(selected.sft), len(selected.dpo)) == (1, 0)

    def test_same_source_is_a_switch(self):
        frame = candidates([("a", 0.12, "correct"), ("b", 0.11, "wrong"), ("b", 0.1, "wrong")], "code")
        assert select(frame).dpo.is_empty()
        columns = ["chosen_source", "rejected_source", "rejected_sample_index"]
        crossed = select(frame, code=VerdictBoth(same_source=False)).dpo
        assert crossed.select(columns).rows() == [("a", "b", 1)]

    def test_all_fail(self):
        assert reasons(select(candidates([("a", 0.9, "wrong")], "code"))) == [("select", "no_correct_answer")]

    def test_all_pass(self):
        selected = select(candidates([("a", 0.9, "correct"), ("a", 0.8, "correct")], "code"))
        assert (len(selected.sft), len(selected.dpo)) == (1, 0)


class TestChinese:
    def test_one_source_sft_only(self):
        frame = candidates([("a", 0.9), ("b", 0.1)], "chinese")
        selected = select(frame, chinese=OneSource(source="b"))
        assert selected.sft["source"].to_list() == ["b"] and selected.dpo.is_empty()
        assert select(frame).sft["source"].to_list() == ["a"]

    def test_needs_no_reward(self):
        assert len(select(candidates([("a", None)], "chinese")).sft) == 1

    def test_source_without_answer(self):
        selected = select(candidates([("a", 0.9)], "chinese"), chinese=OneSource(source="b"))
        assert reasons(selected) == [("select", "no_answer_of_the_source")]


class TestUnusable:
    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            (("a", 0.5, "correct", "length"), "truncated"),
            (("a", 0.5, "correct", "abort"), "not_finished"),
            (("a", 0.5, "correct", "stop", " \n"), "empty"),
            (("a", None, None, "error", ""), "not_sampled"),
            (("a", None, "correct"), "no_reward"),
            (("a", math.nan, "correct"), "non_finite_reward"),
            (("a", math.inf, "correct"), "non_finite_reward"),
        ],
    )
    @pytest.mark.parametrize("domain", ["instruction", "math", "code"])
    def test_serves_nowhere_and_is_counted(self, domain: str, row: tuple[Any, ...], reason: str):
        good = [("a", 0.15, "correct"), ("a", 0.12, "wrong")]
        selected = select(candidates([row, *good], domain), **ALL_DPO)
        assert selected.unused.select("sample_index", "reason").rows() == [(0, reason)]
        assert pair(selected) == ("a", 1, 2)

    @pytest.mark.parametrize("mark", selection.MARKS)
    @pytest.mark.parametrize("domain", ["instruction", "math", "code", "chinese"])
    def test_a_mark_takes_the_answer_out(self, domain: str, mark: str):
        frame = candidates([("a", 0.2, "correct"), ("a", 0.15, "correct"), ("a", 0.01, "wrong")], domain)
        selected = select(frame.with_columns(pl.Series(mark, [True, False, None])), **ALL_SFT)
        assert selected.unused.select("sample_index", "reason").rows() == [(0, mark)]
        assert {*selected.sft["sample_index"], *selected.dpo["chosen_sample_index"]} <= {1}

    def test_infinitely_low_reward_is_not_rejected_either(self):
        rows = [("a", 0.15), ("a", 0.12), ("a", -math.inf)]
        assert pair(select(candidates(rows, "instruction"), **ALL_DPO)) == ("a", 0, 1)

    def test_every_lost_prompt_has_stage_and_reason(self):
        frame = pl.concat(
            [
                candidates([("a", 0.1, "correct", "length")], "math", "cut"),
                candidates([("a", math.nan, "correct"), ("a", 0.1, "correct", "length")], "math", "nan"),
                candidates([("a", 0.1, "wrong")], "math", "wrong"),
                candidates([("a", 0.1, "correct")], "math", "fine"),
            ]
        )
        prompts = pl.DataFrame({"id": ["cut", "nan", "wrong", "fine", "unasked"], "dataset": "d", "domain": "math"})
        selected = selection.select(prompts, frame, RULES, 0)
        assert selected.discarded.select("prompt_id", "stage", "reason").rows() == [
            ("cut", "sample", "no_usable_answer"),
            ("nan", "score", "no_usable_reward"),
            ("unasked", "sample", "no_answer"),
            ("wrong", "select", "no_correct_answer"),
        ]
        assert selected.sft["prompt_id"].to_list() == ["fine"]

    def test_nothing_at_all(self):
        frame = candidates([("a", 0.1)], "math").clear()
        prompts = pl.DataFrame({"id": ["p"], "dataset": "d", "domain": "math"})
        assert reasons(selection.select(prompts, frame, RULES, 0)) == [("sample", "no_answer")]
