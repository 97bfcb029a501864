"""The vectorised rules against the plain ones, on random tables full of ties, gaps and oddities."""

import math
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.selection import rules as selection
from data_pipeline.selection.rules import (
    TRIPLE,
    WRPO,
    FuseRL,
    Margin,
    OneSource,
    Parameters,
    Quantile,
    VerdictBoth,
    VerdictPairs,
)
from tests.data_pipeline.selection import reference_selection as reference

SCHEMA = {
    "prompt_id": pl.String,
    "source": pl.String,
    "sample_index": pl.Int64,
    "finish_reason": pl.String,
    "truncated": pl.Boolean,
    "degenerate": pl.Boolean,
    "text_hash": pl.UInt64,
    "reward": pl.Float64,
    "verdict": pl.String,
}
# Few values, so that rewards and margins tie often, and margins fall on both bounds.
ordinary = st.integers(0, 24).map(lambda step: step * 0.005)
rewards = st.one_of(ordinary, ordinary, ordinary, st.sampled_from([None, math.nan, math.inf, -math.inf]))
answers = st.fixed_dictionaries(
    {
        "source": st.sampled_from(["a", "b", "c"]),
        "finish_reason": st.sampled_from(["stop"] * 8 + [None, "length", "error", "abort"]),
        "truncated": st.sampled_from([False] * 6 + [None, True]),
        "degenerate": st.sampled_from([False] * 6 + [None, True]),
        "text_hash": st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 2), st.none()),
        "reward": rewards,
        "verdict": st.sampled_from(["correct", "wrong", "correct", "wrong", "unknown", None]),
    }
)
shares = st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9, 1.0])
pair_sources = st.sampled_from(["best", "random", "widest"])


@st.composite
def rules(draw: st.DrawFn, kind: Any, **more: st.SearchStrategy[Any]) -> Any:
    """A domain's rule with random bounds."""
    low, high = sorted([draw(ordinary), draw(ordinary)])
    least, most = sorted([draw(shares), draw(shares)])
    low = draw(st.sampled_from([None, low, Quantile(quantile=least)]))
    high = draw(st.sampled_from([None, high, Quantile(quantile=most)]))
    values = {name: draw(strategy) for name, strategy in more.items()} | {"same_source": draw(st.booleans())}
    return kind(min_margin=low, max_margin=high, pair_source=draw(pair_sources), **values)


margins = rules(Margin, sft_fraction=st.sampled_from([0.0, 0.4, 1.0]))
boths = rules(VerdictBoth)
fractions = st.sampled_from([0.0, 0.4, 1.0])
triples = st.builds(WRPO, target=st.sampled_from([None, "a", "b"]), sft_fraction=fractions)
weighted = st.builds(
    FuseRL, top=st.integers(1, 4), temperature=st.sampled_from([0.01, 0.05, 1.0]), sft_fraction=fractions
)
# Two domains may have the same rule with other parameters.
configs = st.fixed_dictionaries(
    {
        "instruction": margins,
        "math": rules(VerdictPairs),
        "code": boths,
        "chinese": st.builds(OneSource, source=st.sampled_from([None, "a", "b"])),
        "law": st.one_of(margins, boths),
        "essays": triples,
        "songs": weighted,
    }
)
repeats = st.sampled_from([0] * 11 + [1])
strangers = st.lists(answers, max_size=2)
tables = st.lists(
    st.tuples(
        st.sampled_from(["instruction", "math", "code", "chinese", "law", "essays", "essays", "songs", "songs"]),
        st.lists(answers, max_size=8),
    ),
    max_size=6,
)


@settings(max_examples=100)
@given(tables, strangers, repeats, configs, st.integers(0, 5), st.randoms(use_true_random=False))
def test_agrees_with_the_reference(
    table: Any, unasked: Any, repeated: int, config: dict[str, Parameters], seed: int, shuffler: Any
):
    prompts, rows = [], []
    for number, (domain, answered) in enumerate(table):
        prompts.append({"id": f"p{number}", "dataset": f"{domain}-set", "domain": domain})
        counts: dict[str, int] = {}
        for answer in answered:
            index = counts[answer["source"]] = counts.get(answer["source"], -1) + 1
            rows.append({"prompt_id": f"p{number}", "sample_index": index, **answer})
    rows += [{**row, "text_hash": 7} for row in rows[:repeated]]
    rows += [{"prompt_id": "stranger", "sample_index": index, **answer} for index, answer in enumerate(unasked)]
    expected = reference.select(prompts, rows, config, seed)
    shuffler.shuffle(rows)
    prompt_schema = dict.fromkeys(["id", "dataset", "domain"], pl.String)
    got = selection.select(pl.DataFrame(prompts, schema=prompt_schema), pl.DataFrame(rows, schema=SCHEMA), config, seed)
    assert sorted(got.sft.select("prompt_id", "source", "sample_index").rows()) == sorted(expected.sft)
    ends = [f"{end}_{name}" for end in ("chosen", "rejected") for name in ("source", "sample_index")]
    assert sorted(got.dpo.select("prompt_id", *ends, "margin").rows()) == sorted(expected.dpo)
    ends = [f"{end}_{name}" for end in TRIPLE for name in ("source", "sample_index")]
    assert sorted(got.wrpo.select("prompt_id", *ends).rows()) == sorted(expected.wrpo)
    chosen = got.dpo.select("prompt_id", source="chosen_source", sample_index="chosen_sample_index", weight="weight")
    weights = pl.concat([got.sft.select(chosen.columns), chosen]).drop_nulls("weight")
    assert {row[:3]: pytest.approx(row[3]) for row in weights.iter_rows()} == expected.weights
    for frame in (got.sft, got.dpo):
        sums = frame.drop_nulls("weight").group_by("prompt_id").agg(pl.col("weight").sum())["weight"]
        assert sums.to_list() == pytest.approx([1.0] * len(sums))
    discarded = got.discarded.select("prompt_id", "stage", "reason").rows()
    assert sorted(discarded) == sorted((name, *why) for name, why in expected.discarded.items())
    unused = got.unused.select("prompt_id", "source", "sample_index", "reason").rows()
    assert sorted(unused) == sorted(expected.unused)
    assert {domain: tuple(vars(found).values()) for domain, found in got.bounds.items()} == expected.bounds
    # Nothing disappears.
    used = {*got.sft["prompt_id"], *got.dpo["prompt_id"], *got.wrpo["prompt_id"]}
    assert used | set(got.discarded["prompt_id"]) == {prompt["id"] for prompt in prompts}
    assert not used & set(got.discarded["prompt_id"])
    # Nor does the order of rows count, in the last bit of a weight.
    shuffler.shuffle(rows)
    again = selection.select(
        pl.DataFrame(prompts, schema=prompt_schema), pl.DataFrame(rows, schema=SCHEMA), config, seed
    )
    for name in ("sft", "dpo", "wrpo", "discarded"):
        assert getattr(again, name).equals(getattr(got, name)), name
