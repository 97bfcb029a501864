"""The rules whose examples are for a target: triples with its own answers, and weights by source."""

import math
from typing import Any

import polars as pl
import pytest

from data_pipeline.selection import rules as selection
from data_pipeline.selection.rules import WRPO, FuseRL
from tests.data_pipeline.selection.test_selection import candidates, reasons, select

TRIPLES = {"instruction": WRPO(target="me", sft_fraction=0)}
ROWS = [("a", 0.11), ("a", 0.15), ("b", 0.12), ("me", 0.13), ("me", 0.09), ("me", 0.14), ("me", 0.10)]
PUBLISHED = (0.162, 0.158, 0.149, 0.171)
"""Best rewards of four sources to one prompt."""


def triple(selected: selection.Selected) -> tuple[Any, ...]:
    (row,) = selected.wrpo.iter_rows(named=True)
    return tuple(f"{row[f'{name}_source']}{row[f'{name}_sample_index']}" for name in selection.TRIPLE)


class TestTriples:
    def test_best_of_the_sources_and_best_and_worst_of_the_target(self):
        selected = select(candidates(ROWS, "instruction"), **TRIPLES)
        assert triple(selected) == ("a1", "me2", "me1")
        (row,) = selected.wrpo.iter_rows(named=True)
        assert [row[f"{name}_reward"] for name in selection.TRIPLE] == [0.15, 0.14, 0.09]
        assert row["margin"] == 0.05
        assert selected.sft.is_empty() and selected.dpo.is_empty() and selected.discarded.is_empty()
        assert selected.bounds["instruction"] == selection.Bounds(1e-6, None, 1)

    def test_the_source_may_be_worse_than_the_target(self):
        """Its answers are chosen by what it is, not by a margin."""
        rows = [("a", 0.01), ("me", 0.13), ("me", 0.09)]
        assert triple(select(candidates(rows, "instruction"), **TRIPLES)) == ("a0", "me0", "me1")

    def test_examples_are_never_the_targets_own(self):
        rule = {"instruction": WRPO(target="me", sft_fraction=1)}
        selected = select(candidates([("a", 0.1), ("me", 0.9), ("me", 0.1)], "instruction"), **rule)
        assert selected.sft.select("source", "sample_index", "weight").rows() == [("a", 0, None)]
        assert selected.wrpo.is_empty()

    @pytest.mark.parametrize(
        ("rows", "reason"),
        [
            ([("me", 0.2), ("me", 0.1)], "no_answer_of_the_sources"),
            ([("a", None), ("me", 0.2), ("me", 0.1)], "no_answer_of_the_sources"),
            ([("a", 0.2), ("a", 0.1)], "no_answer_of_the_target"),
            ([("a", 0.2), ("me", None), ("me", 0.1, None, "length")], "no_answer_of_the_target"),
            ([("a", 0.2), ("me", 0.1)], "one_answer_of_the_target"),
            ([("a", 0.2), ("me", 0.1), ("me", math.nan)], "one_answer_of_the_target"),
            ([("a", 0.2), ("me", 0.2, None, "stop", "same"), ("me", 0.1, None, "stop", "same")], "equal_texts"),
            ([("a", 0.2), ("me", 0.1), ("me", 0.1)], "margin_too_small"),
        ],
    )
    def test_why_there_is_no_triple(self, rows: list[tuple[Any, ...]], reason: str):
        selected = select(candidates(rows, "instruction"), **TRIPLES)
        assert selected.wrpo.is_empty() and reasons(selected) == [("select", reason)]

    def test_the_second_round_leaves_the_examples_of_the_first(self):
        frames = [candidates(ROWS, "instruction", prompt=f"p{number}") for number in range(300)]
        frame = pl.concat(frames)
        first = select(frame.filter(pl.col("source") != "me"), instruction=WRPO())
        second = select(frame, instruction=WRPO(target="me"))
        assert 70 < len(first.sft) < 130 and first.sft.equals(second.sft)
        assert first.wrpo.is_empty() and set(first.discarded["reason"]) == {"awaits_the_target"}
        assert set(first.discarded["prompt_id"]) == set(second.wrpo["prompt_id"])
        assert second.discarded.is_empty()


class TestWeights:
    @pytest.mark.parametrize(
        ("temperature", "expected"),
        [(1, (0.250, 0.249, 0.247, 0.253)), (0.01, (0.227, 0.152, 0.062, 0.559)), (0.001, (0.0, 0.0, 0.0, 1.0))],
    )
    def test_softmax_over_the_best_rewards(self, temperature: float, expected: tuple[float, ...]):
        """Worse answers beside the best change nothing, neither in examples nor in pairs."""
        names = "abcd"
        rows = [
            (name, reward - 0.01 * place) for place in range(3) for name, reward in zip(names, PUBLISHED, strict=True)
        ]
        frame = candidates(rows, "instruction")
        pairs = select(frame, instruction=FuseRL(temperature=temperature, sft_fraction=0)).dpo
        assert pairs.select("chosen_source", "chosen_sample_index", "rejected_sample_index").rows() == [
            (name, 0, 2) for name in names
        ]
        assert [round(weight, 3) for weight in pairs["weight"]] == list(expected)
        assert pairs["weight"].sum() == pytest.approx(1, abs=1e-12)
        alone = frame.filter(pl.col("sample_index") == 0)
        examples = select(alone, instruction=FuseRL(temperature=temperature, sft_fraction=1)).sft
        assert examples["source"].to_list() == list(names)
        assert [round(weight, 3) for weight in examples["weight"]] == list(expected)

    def test_the_best_answers_of_all_sources_are_examples(self):
        rows = [("a", 0.14), ("a", 0.13), ("a", 0.12), ("b", 0.15), ("b", 0.10), ("c", 0.11)]
        selected = select(candidates(rows, "instruction"), instruction=FuseRL(top=3, sft_fraction=1))
        assert selected.sft.select("source", "sample_index").rows() == [("a", 0), ("a", 1), ("b", 0)]
        a, other, b = selected.sft["weight"]
        # Both answers of a count as a's best.
        assert a == other == pytest.approx(b * math.exp(-1)) and a + other + b == pytest.approx(1)

    def test_sources_without_a_pair_take_no_weight(self):
        rows = [("a", 0.15), ("a", 0.10), ("b", 0.2), ("c", 0.1), ("c", 0.1)]
        selected = select(candidates(rows, "instruction"), instruction=FuseRL(sft_fraction=0))
        assert selected.dpo.select("chosen_source", "weight").rows() == [("a", 1.0)]

    def test_what_float32_cannot_weigh_is_left_out(self):
        rows = [("a", 0.9), ("a", 0.1), ("b", 0.5), ("b", 0.1)]
        selected = select(candidates(rows, "instruction"), instruction=FuseRL(temperature=0.001, sft_fraction=0))
        assert selected.dpo.select("chosen_source", "weight").rows() == [("a", 1.0)]
        left_out = selected.unused.select("source", "sample_index", "reason").rows()
        assert left_out == [("b", 0, "no_weight"), ("b", 1, "no_weight")]
        selected = select(candidates(rows, "instruction"), instruction=FuseRL(temperature=0.001, sft_fraction=1))
        assert selected.sft.select("source", "sample_index", "weight").rows() == [("a", 0, 0.5), ("a", 1, 0.5)]
        assert selected.unused.select("source", "sample_index", "reason").rows() == left_out

    @pytest.mark.parametrize(
        ("rows", "reason"),
        [
            ([("a", 0.2), ("b", 0.1)], "one_answer"),
            ([("a", 0.2), ("a", None)], "one_reward"),
            ([("a", 0.2, None, "stop", "same"), ("a", 0.1, None, "stop", "same"), ("b", 0.1)], "equal_texts"),
            ([("a", 0.2), ("a", 0.2)], "margin_too_small"),
        ],
    )
    def test_why_there_is_no_pair(self, rows: list[tuple[Any, ...]], reason: str):
        selected = select(candidates(rows, "instruction"), instruction=FuseRL(sft_fraction=0))
        assert selected.dpo.is_empty() and reasons(selected) == [("select", reason)]
