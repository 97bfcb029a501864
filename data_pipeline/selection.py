"""Which answers become SFT examples and which become preference pairs: the rules, as pure functions on tables.

Candidates are one row an answer:

    prompt_id, dataset, domain, source   text
    sample_index                         integer, counts the source's answers to the prompt
    finish_reason                        "stop", "length" (cut at the limit) or "error" (none was made)
    text_hash                            unsigned integer: equal where texts are equal; null where the text is blank
    reward                               float, can be null or not finite
    verdict                              "correct", "wrong", "unknown" or null

Nothing here reads texts, so millions of candidates fit in memory. Ties are broken by source name, then sample index;
random choices hash (seed, prompt), so no result depends on the order of rows.
"""

import math
from dataclasses import dataclass

import polars as pl

from data_pipeline.config import (
    ChineseSelection,
    CodeSelection,
    InstructionSelection,
    MathSelection,
    PairSource,
    SelectionConfig,
)
from data_pipeline.store import rank

PROMPT = ["prompt_id", "dataset", "domain"]
_ANSWER = {"source": pl.String, "sample_index": pl.Int64, "reward": pl.Float64}
_PROMPT_SCHEMA = dict.fromkeys(PROMPT, pl.String)
SFT_SCHEMA = pl.Schema({**_PROMPT_SCHEMA, **_ANSWER})
PAIR_SCHEMA = pl.Schema(
    {
        **_PROMPT_SCHEMA,
        **{f"chosen_{name}": kind for name, kind in _ANSWER.items()},
        **{f"rejected_{name}": kind for name, kind in _ANSWER.items()},
        "margin": pl.Float64,
    }
)
DISCARDED_SCHEMA = pl.Schema({**_PROMPT_SCHEMA, "stage": pl.String, "reason": pl.String})
UNUSED_SCHEMA = pl.Schema({**_PROMPT_SCHEMA, "source": pl.String, "sample_index": pl.Int64, "reason": pl.String})


@dataclass(frozen=True)
class Selected:
    """What became of the prompts: each is in `sft`, in `dpo`, in both (code), or in `discarded` with its reason."""

    sft: pl.DataFrame
    dpo: pl.DataFrame
    discarded: pl.DataFrame
    unused: pl.DataFrame | None = None
    """Answers that could not serve at all, with the reason."""


def select(prompts: pl.DataFrame, candidates: pl.DataFrame, config: SelectionConfig, seed: int) -> Selected:
    """Applies each domain's rule to its prompts.

    Args:
      prompts: id, dataset, domain; the prompts to account for.
      candidates: see the module; answers to other prompts are ignored.
    """
    prompts = prompts.select(pl.col("id").alias("prompt_id"), "dataset", "domain")
    candidates = candidates.drop("dataset", "domain", strict=False).join(prompts, on="prompt_id")
    candidates = candidates.with_columns(pl.col("reward").cast(pl.Float64))
    judged = candidates.with_columns(reason=_unusable())
    usable = judged.filter(pl.col("reason").is_null())
    parts = [
        instruction(_of(usable, "instruction"), config.instruction, seed),
        math_(_of(usable, "math"), config.math, seed),
        code(_of(usable, "code"), config.code, seed),
        chinese(_of(usable, "chinese"), config.chinese),
    ]
    lost = _lost(prompts, judged)
    return Selected(
        sft=pl.concat([part.sft for part in parts]).sort("prompt_id"),
        dpo=pl.concat([part.dpo for part in parts]).sort("prompt_id"),
        discarded=pl.concat([lost, *(part.discarded for part in parts)]).sort("prompt_id"),
        unused=judged.filter(pl.col("reason").is_not_null())
        .select(UNUSED_SCHEMA.names())
        .sort("prompt_id", "source", "sample_index"),
    )


def instruction(candidates: pl.DataFrame, rule: InstructionSelection, seed: int) -> Selected:
    """Prompts with a valid pair are split, data set by data set: SFT gets the best answer of all, DPO the pair.

    The share of SFT is rounded down. Splitting after the pairs are known gives the ratio exactly, as published.
    """
    valid = pairs(candidates, candidates, rule.min_margin, rule.max_margin, rule.pair_source, seed)
    places = valid.select(*PROMPT).with_columns(
        rank=pl.Series([rank(seed, "split", prompt) for prompt in valid["prompt_id"]], dtype=pl.Int64)
    )
    places = places.sort("rank", "prompt_id").with_columns(place=pl.int_range(pl.len()).over("dataset"))
    quotas = {
        dataset: math.floor(rule.sft_fraction * count + 1e-9)
        for dataset, count in valid.group_by("dataset").len().iter_rows()
    }
    quota = pl.col("dataset").replace_strict(quotas, return_dtype=pl.Int64) if quotas else pl.lit(0)
    to_sft = places.filter(pl.col("place") < quota)
    return Selected(
        sft=best(candidates.join(to_sft, on="prompt_id", how="semi")),
        dpo=valid.join(to_sft, on="prompt_id", how="anti"),
        discarded=_discard(candidates.join(valid, on="prompt_id", how="anti"), "no_valid_pair"),
    )


def math_(candidates: pl.DataFrame, rule: MathSelection, seed: int) -> Selected:
    """Pairs of a correct and a wrong answer first; of the prompts left over, the best correct answer serves SFT."""
    correct = candidates.filter(pl.col("verdict") == "correct")
    wrong = candidates.filter(pl.col("verdict") == "wrong")
    dpo = pairs(correct, wrong, rule.min_margin, rule.max_margin, rule.pair_source, seed)
    return Selected(
        sft=best(correct.join(dpo, on="prompt_id", how="anti")),
        dpo=dpo,
        discarded=_discard(candidates.join(correct, on="prompt_id", how="anti"), "no_correct_answer"),
    )


def code(candidates: pl.DataFrame, rule: CodeSelection, seed: int) -> Selected:
    """The best answer that passes serves SFT; with one that fails it makes a pair too. None passes: dropped."""
    correct = candidates.filter(pl.col("verdict") == "correct")
    wrong = candidates.filter(pl.col("verdict") == "wrong")
    return Selected(
        sft=best(correct),
        dpo=pairs(
            correct, wrong, rule.min_margin, rule.max_margin, rule.pair_source, seed, same_source=rule.same_source
        ),
        discarded=_discard(candidates.join(correct, on="prompt_id", how="anti"), "no_correct_answer"),
    )


def chinese(candidates: pl.DataFrame, rule: ChineseSelection) -> Selected:
    """The answer of the one source serves SFT; of several, that with the highest reward."""
    of_source = candidates if rule.source is None else candidates.filter(pl.col("source") == rule.source)
    return Selected(
        sft=best(of_source),
        dpo=pl.DataFrame(schema=PAIR_SCHEMA),
        discarded=_discard(candidates.join(of_source, on="prompt_id", how="anti"), "no_answer_of_the_source"),
    )


def best(candidates: pl.DataFrame) -> pl.DataFrame:
    """The answer with the highest reward of each prompt; one without reward comes last."""
    return (
        _sorted(candidates, best_first=True)
        .unique("prompt_id", keep="first", maintain_order=True)
        .select(SFT_SCHEMA.names())
    )


def pairs(
    winners: pl.DataFrame,
    losers: pl.DataFrame,
    min_margin: float | None,
    max_margin: float | None,
    pair_source: PairSource,
    seed: int,
    *,
    same_source: bool = True,
) -> pl.DataFrame:
    """At most one pair a prompt: a source's best winner against its worst loser, where the margin is within bounds.

    Of several valid sources, `pair_source` decides: "best", the one with the best chosen answer; "widest", the one with
    the widest margin; "random", a seeded one. Bounds are inclusive, and margins rounded to six decimals: 0.12 - 0.11 is
    0.00999... in binary, in the seventh already where rewards are float32. Equal texts make no pair.
    """
    group = ["prompt_id", "source"] if same_source else ["prompt_id"]
    answer = ["source", "sample_index", "reward", "text_hash"]

    def ends(frame: pl.DataFrame, best_first: bool, prefix: str) -> pl.DataFrame:
        first = _sorted(frame, best_first=best_first).unique(group, keep="first", maintain_order=True)
        renamed = [pl.col(name).alias(f"{prefix}_{name}") for name in answer]
        return first.select(*dict.fromkeys([*group, *PROMPT]), *renamed)

    chosen = ends(winners, True, "chosen")
    rejected = ends(losers, False, "rejected").drop("dataset", "domain")
    valid = chosen.join(rejected, on=group).with_columns(
        margin=(pl.col("chosen_reward") - pl.col("rejected_reward")).round(6)
    )
    valid = valid.filter(pl.col("chosen_text_hash") != pl.col("rejected_text_hash"))
    if min_margin is not None:
        valid = valid.filter(pl.col("margin") >= min_margin)
    if max_margin is not None:
        valid = valid.filter(pl.col("margin") <= max_margin)
    names = ["prompt_id", "chosen_source"]
    if pair_source == "random":
        ranks = [rank(seed, "pair", *row) for row in valid.select(names).iter_rows()]
        valid = valid.with_columns(rank=pl.Series(ranks, dtype=pl.Int64)).sort("rank", *names)
    else:
        first, second = ("chosen_reward", "margin") if pair_source == "best" else ("margin", "chosen_reward")
        valid = valid.sort(first, second, *names, descending=[True, True, False, False])
    return valid.unique("prompt_id", keep="first", maintain_order=True).select(PAIR_SCHEMA.names())


def _sorted(candidates: pl.DataFrame, *, best_first: bool) -> pl.DataFrame:
    """By reward; ties by source, then sample index. An answer without reward comes last."""
    order = ["reward", "source", "sample_index"]
    return candidates.sort(order, descending=[best_first, False, False], nulls_last=True)


def _unusable() -> pl.Expr:
    """Why an answer can serve nowhere, neither chosen nor rejected; null if it can."""
    needs_reward = pl.col("domain") != "chinese"
    return (
        pl.when(pl.col("finish_reason") == "error")
        .then(pl.lit("not_sampled"))
        .when(pl.col("text_hash").is_null())
        .then(pl.lit("empty"))
        .when(pl.col("finish_reason") == "length")
        .then(pl.lit("truncated"))
        .when(pl.col("reward").is_null() & needs_reward)
        .then(pl.lit("no_reward"))
        .when(pl.col("reward").is_not_null() & ~pl.col("reward").is_finite())
        .then(pl.lit("non_finite_reward"))
    )


def _of(candidates: pl.DataFrame, domain: str) -> pl.DataFrame:
    return candidates.filter(pl.col("domain") == domain)


def _lost(prompts: pl.DataFrame, judged: pl.DataFrame) -> pl.DataFrame:
    """Prompts that come to the rules without any usable answer, by the stage where they lost the last one."""
    lost = prompts.join(judged.filter(pl.col("reason").is_null()), on="prompt_id", how="anti")
    # Where its furthest answer was lost, a prompt was lost.
    asked = lost.join(judged, on="prompt_id", how="semi")
    scored = judged.filter(pl.col("reason").is_in(["no_reward", "non_finite_reward"]))
    parts = [
        (lost.join(judged, on="prompt_id", how="anti"), "sample", "no_answer"),
        (asked.join(scored, on="prompt_id", how="anti"), "sample", "no_usable_answer"),
        (asked.join(scored, on="prompt_id", how="semi"), "score", "no_usable_reward"),
    ]
    return pl.concat([_discard(frame, reason, stage) for frame, stage, reason in parts])


def _discard(frame: pl.DataFrame, reason: str, stage: str = "select") -> pl.DataFrame:
    unique = frame.select(PROMPT).unique("prompt_id", maintain_order=True)
    return unique.with_columns(stage=pl.lit(stage), reason=pl.lit(reason)).select(DISCARDED_SCHEMA.names())
