"""Which answers become SFT examples and which become preference pairs: the rules, as pure functions on tables.

A rule is a function of a domain's candidates and of its own parameters, and a line of `RULES`; `select` applies each
domain's rule to its prompts. Candidates have one row per answer:

    prompt_id, source                    text
    sample_index                         integer, counts the source's answers to the prompt
    finish_reason                        "stop", "length" (cut at the limit), "error" (none was made); null if not known
    truncated, degenerate                boolean marks: an answer with one is not used at all; the columns can be absent
    text_hash                            unsigned integer: equal where texts are equal; null where the text is blank
    reward                               float, can be null or not finite
    verdict                              "correct", "wrong", "unknown" or null

Nothing here reads texts, so millions of candidates fit in memory. Ties (two answers with equal rewards) and the split
between SFT and DPO are decided by hashes of the seed, the prompt's id, the source's name and the sample index: no
result depends on the order of rows, and what happens to a prompt depends on no other prompt, unless a rule's bounds are
quantiles of the domain's margins.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import polars as pl
import pydantic
from pydantic import Field, PositiveFloat, PositiveInt

from data_pipeline.selection import hashing
from fusejax.common.cli import ConfigModel

PairSource = Literal["best", "random", "widest"]

MARKS = ("truncated", "degenerate")
"""Boolean columns of samples that exclude an answer; the name is the reason."""
NO_REWARD = ("no_reward", "non_finite_reward")
"""Reasons why an answer is unused that have to do with its reward alone."""
_ANSWER = {"source": pl.String, "sample_index": pl.Int64, "reward": pl.Float64}
_PROMPT_SCHEMA = dict.fromkeys(["prompt_id", "dataset", "domain"], pl.String)
TRIPLE = ("source_chosen", "target_chosen", "rejected")
"""The answers of a triple, as its record calls them."""


def _answers(*sides: str) -> dict[str, Any]:
    return {f"{side}_{name}": kind for side in sides for name, kind in _ANSWER.items()}


SFT_SCHEMA = pl.Schema({**_PROMPT_SCHEMA, **_ANSWER, "weight": pl.Float64})
PAIR_SCHEMA = pl.Schema(
    {**_PROMPT_SCHEMA, **_answers("chosen", "rejected"), "margin": pl.Float64, "weight": pl.Float64}
)
TRIPLE_SCHEMA = pl.Schema({**_PROMPT_SCHEMA, **_answers(*TRIPLE), "margin": pl.Float64})
"""The margin is that of the target's own two answers."""
DISCARDED_SCHEMA = pl.Schema({**_PROMPT_SCHEMA, "stage": pl.String, "reason": pl.String})
UNUSED_SCHEMA = pl.Schema({**_PROMPT_SCHEMA, "source": pl.String, "sample_index": pl.Int64, "reason": pl.String})
PROBLEMS = pl.Enum(["one_answer", "equal_texts", "margin_too_small", "margin_too_wide"])
"""Why a source gives no pair, from furthest to closest to a valid one."""


@dataclass(frozen=True)
class Selected:
    """What became of the prompts: each is in `sft`, in `dpo`, in both (`verdict_both`), in `wrpo`, or in `discarded`,
    with why."""

    sft: pl.DataFrame
    dpo: pl.DataFrame
    wrpo: pl.DataFrame
    discarded: pl.DataFrame
    unused: pl.DataFrame
    """Answers that could not be used at all, with the reason."""
    bounds: dict[str, "Bounds"] = field(default_factory=dict)
    """Domain -> the bounds of its margins, where its rule makes pairs."""


@dataclass(frozen=True)
class Part:
    """What a rule made of a domain's prompts; the column `prompt` is the row number of the prompt. Without a column
    `weight`, all examples and pairs count the same."""

    sft: pl.DataFrame
    dpo: pl.DataFrame | None
    discarded: pl.DataFrame
    """prompt, reason."""
    bounds: "Bounds | None" = None
    wrpo: pl.DataFrame | None = None
    unused: pl.DataFrame | None = None
    """prompt, source, sample_index, reason: answers that only this rule cannot use."""


@dataclass(frozen=True)
class Bounds:
    """Which margins a pair may have, in the rewards' unit, both inclusive; None is no bound."""

    min_margin: float | None
    max_margin: float | None
    margins: int
    """How many margins the domain has: quantiles are of these."""


class Quantile(ConfigModel):
    """A bound of margins by their rank, for rewards of any scale."""

    quantile: float = Field(ge=0, le=1)
    """The bound is the least margin such that this share of the domain's margins lies at or below it. They are those of
    all pairs that the rule compares, before any bound: with `same_source`, one per prompt and source that has two
    different answers to compare."""

    def __str__(self) -> str:
        return f"quantile {self.quantile}"


def _bound(value: Any) -> Any:
    """A section, validated as a quantile here so that an error names the key in which the mistake is."""
    if isinstance(value, dict):
        return Quantile.model_validate(value, strict=True)
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
    if not (value is None or number or isinstance(value, Quantile)):
        raise ValueError("expected a number of at least 0, null, or {quantile: SHARE}")
    return value


Bound = Annotated[float | Quantile | None, pydantic.BeforeValidator(_bound)]


class Margins(ConfigModel):
    """What rules that make pairs have in common."""

    min_margin: Bound = 0.01
    """Lower bound, inclusive, of chosen minus rejected reward: a number; or `{quantile: 0.1}`, to leave out about the
    closest tenth. null is no bound."""
    max_margin: Bound = 0.1
    """Upper bound, inclusive, of chosen minus rejected reward: a number; or `{quantile: 0.9}`, to leave out about the
    widest tenth. null is no bound."""
    pair_source: PairSource = "best"
    """Which source's valid pair: with the best chosen answer, a seeded random one, or with the widest margin."""
    same_source: bool = True
    """Whether both answers of a pair must come from one source. If not, there is one pair per prompt to choose from."""

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> "Margins":
        low, high = self.min_margin, self.max_margin
        if isinstance(low, Quantile) and isinstance(high, Quantile):
            above = low.quantile > high.quantile
        else:  # Which of a number and a quantile is greater, only the margins tell.
            above = isinstance(low, float) and isinstance(high, float) and low > high
        if above:
            raise ValueError(f"min_margin {low} exceeds max_margin {high}")
        return self


class Margin(Margins):
    """A source's best answer against its worst, by reward; prompts with a valid pair are split between SFT and DPO."""

    name: Literal["margin"] = "margin"
    """Name of the rule."""
    sft_fraction: float = Field(0.4, ge=0, le=1)
    """Share for SFT of the prompts with a valid pair; the others go to DPO. A hash of the prompt's id and the seed
    decides, so the share is met up to chance (51,098 prompts: to 0.4 points), and adding prompts moves no other one."""


class VerdictPairs(Margins):
    """Prompts with a valid pair of a correct and a wrong answer go to DPO; others with a correct answer go to SFT."""

    name: Literal["verdict_pairs"] = "verdict_pairs"
    """Name of the rule."""


class VerdictBoth(Margins):
    """The best correct answer is an SFT example; if there is a wrong answer, the prompt gives a pair too."""

    name: Literal["verdict_both"] = "verdict_both"
    """Name of the rule."""
    min_margin: Bound = 0.0
    """As for the rule margin, but by default only that the chosen answer has no lower reward than the rejected one."""
    max_margin: Bound = None
    """As for the rule margin, but no bound by default."""


class OneSource(ConfigModel):
    """SFT only: the best answer of one source. Needs no reward."""

    name: Literal["one_source"] = "one_source"
    """Name of the rule."""
    source: str | None = None
    """The one source whose answers are used. Default: any."""


class WRPO(ConfigModel):
    """Some prompts go to SFT, with the best answer of all sources. The others make triples (WRPO): that answer, and the
    best and the worst of the target's own."""

    name: Literal["wrpo"] = "wrpo"
    """Name of the rule."""
    target: str | None = None
    """The source that is the model to be trained, as its SFT run left it: it is asked the prompts of triples alone, and
    its answers never stand for the sources'. Default: none yet; then there are the SFT examples alone, and the other
    prompts wait."""
    sft_fraction: float = Field(1 / 3, ge=0, le=1)
    """Share of the prompts for SFT. A hash of the prompt's id and the seed decides, so it is the same with and without
    a target."""


class FuseRL(ConfigModel):
    """Some prompts go to SFT, with several answers; of the others each source gives a pair of its best and its worst
    answer. A prompt's examples, and its pairs, have weights that add up to 1: in the ratio of a softmax over sources of
    the reward of each one's best answer."""

    name: Literal["fuserl"] = "fuserl"
    """Name of the rule."""
    top: PositiveInt = 4
    """How many answers to a prompt are SFT examples: the best of all sources."""
    temperature: PositiveFloat = 0.01
    """Of the softmax, in the unit of the rewards; the default suits ArmoRM's. The smaller, the more the best source
    counts."""
    sft_fraction: float = Field(1 / 3, ge=0, le=1)
    """Share of the prompts for SFT, as for the rule wrpo."""


# The parameters of each rule are a model named after it.
Parameters = Margin | VerdictPairs | VerdictBoth | OneSource | WRPO | FuseRL


def select(prompts: pl.DataFrame, candidates: pl.DataFrame, rules: Mapping[str, Parameters], seed: int) -> Selected:
    """Applies each domain's rule to its prompts.

    Args:
      prompts: id, dataset, domain; the prompts to account for, each once.
      candidates: see the module; answers to other prompts are unused ones without data set and domain.
      rules: domain -> the parameters of its rule, for every domain of the prompts.
      seed: of all random choices.
    """
    # Row numbers and hashes stand for names: they sort and join many times faster.
    prompts = prompts.select(pl.col("id").alias("prompt_id"), "dataset", "domain").with_row_index("prompt")
    prompts = prompts.with_columns(prompt_key=hashing.keys(seed, prompts["prompt_id"]))
    candidates = candidates.drop("dataset", "domain", strict=False)
    strange = candidates.join(prompts, on="prompt_id", how="anti")
    answers = _with_ties(candidates.join(prompts.drop("dataset"), on="prompt_id").drop("prompt_id"), seed)
    with_reward = [domain for domain, parameters in rules.items() if RULES[parameters.name].needs_reward]
    judged = answers.with_columns(pl.col("reward").cast(pl.Float64)).with_columns(
        reason=_unusable([mark for mark in MARKS if mark in candidates.columns], with_reward)
    )
    unused = judged.filter(pl.col("reason").is_not_null())
    # By prompt, then by reward, answers without one last. Between equal rewards, the hash of the names decides.
    usable = judged.filter(pl.col("reason").is_null()).sort(
        "prompt", "reward", "tie", descending=[False, True, False], nulls_last=True
    )
    parts = [
        RULES[parameters.name].apply(usable.filter(pl.col("domain") == domain), parameters)
        for domain, parameters in rules.items()
    ]

    def named(frames: list[pl.DataFrame], schema: pl.Schema) -> pl.DataFrame:
        same = pl.lit(None, pl.Float64).alias("weight")
        weighed = [frame if "weight" in frame.columns else frame.with_columns(same) for frame in frames]
        found = [frame.join(prompts, on="prompt").select(schema.names()) for frame in weighed]
        # The next two columns tell a prompt's rows apart.
        return pl.concat([schema.to_frame(), *found]).sort("prompt_id", *schema.names()[3:5])

    discarded = [_explained(part.discarded, unused).with_columns(stage=pl.lit("select")) for part in parts]
    unasked = strange.select("prompt_id", "source", "sample_index", reason=pl.lit("no_such_prompt"))
    of_rules = [part.unused for part in parts if part.unused is not None]
    served_nowhere = named([unused.drop("domain"), *of_rules], UNUSED_SCHEMA)
    return Selected(
        sft=named([part.sft for part in parts], SFT_SCHEMA),
        dpo=named([part.dpo for part in parts if part.dpo is not None], PAIR_SCHEMA),
        wrpo=named([part.wrpo for part in parts if part.wrpo is not None], TRIPLE_SCHEMA),
        discarded=named([_lost(prompts, usable, unused), *discarded], DISCARDED_SCHEMA),
        unused=pl.concat([served_nowhere, unasked], how="diagonal").sort("prompt_id", "source", "sample_index"),
        bounds={domain: part.bounds for domain, part in zip(rules, parts, strict=True) if part.bounds},
    )


def margin(candidates: pl.DataFrame, rule: Margin) -> Part:
    """A source's best answer against its worst, by reward; or the best of all sources against the worst of all.

    Prompts with a valid pair are split, each by its own hash: SFT gets the best answer of all, DPO the pair.
    """
    judged, bounds = compared(candidates, candidates, rule)
    valid = pairs(judged, rule.pair_source)
    to_sft = valid.filter(for_sft(valid["prompt_key"], rule.sft_fraction))
    return Part(
        sft=best(candidates.join(to_sft, on="prompt", how="semi")),
        dpo=valid.join(to_sft, on="prompt", how="anti"),
        discarded=_without_pair(judged),
        bounds=bounds,
    )


def verdict_pairs(candidates: pl.DataFrame, rule: VerdictPairs) -> Part:
    """A pair of a correct and a wrong answer where a prompt has a valid one; else the best correct answer, for SFT."""
    correct, wrong = _by_verdict(candidates)
    judged, bounds = compared(correct, wrong, rule)
    dpo = pairs(judged, rule.pair_source)
    return Part(
        sft=best(correct.join(dpo, on="prompt", how="anti")),
        dpo=dpo,
        discarded=_without_correct(candidates, correct),
        bounds=bounds,
    )


def verdict_both(candidates: pl.DataFrame, rule: VerdictBoth) -> Part:
    """The best correct answer for SFT, and a pair too if there is a wrong answer. Prompts without a correct answer are
    dropped."""
    correct, wrong = _by_verdict(candidates)
    judged, bounds = compared(correct, wrong, rule)
    return Part(
        sft=best(correct),
        dpo=pairs(judged, rule.pair_source),
        discarded=_without_correct(candidates, correct),
        bounds=bounds,
    )


def one_source(candidates: pl.DataFrame, rule: OneSource) -> Part:
    """SFT only: the answer of the one source; of several, that with the highest reward, if there are rewards."""
    of_source = candidates if rule.source is None else candidates.filter(pl.col("source") == rule.source)
    return Part(sft=best(of_source), dpo=None, discarded=_without(candidates, of_source, "no_answer_of_the_source"))


_DIFFERENT = Margins(min_margin=1e-6, max_margin=None)
"""Any margin will do that rounding leaves."""


def wrpo(candidates: pl.DataFrame, rule: WRPO) -> Part:
    """For SFT the sources' best answer, for the other prompts that one with the target's best and worst."""
    candidates = candidates.with_columns(
        to_sft=for_sft(candidates["prompt_key"], rule.sft_fraction),
        own=pl.col("source").eq_missing(pl.lit(rule.target, pl.String)),
    )
    strong = best(candidates.filter(~pl.col("own")))
    waiting = strong.filter(~pl.col("to_sft"))
    own = candidates.filter("own").join(waiting, on="prompt", how="semi")
    judged, bounds = compared(own, own, _DIFFERENT)
    valid = judged.filter(pl.col("problem").is_null())
    triples = valid.rename({f"chosen_{name}": f"target_chosen_{name}" for name in _ANSWER}).join(
        waiting.select("prompt", *(pl.col(name).alias(f"source_chosen_{name}") for name in _ANSWER)), on="prompt"
    )
    single = pl.col("reason") == "one_answer"
    lost = [
        _without(candidates, strong, "no_answer_of_the_sources"),
        _without(waiting, own, "awaits_the_target" if rule.target is None else "no_answer_of_the_target"),
        _without_pair(judged).with_columns(
            reason=pl.when(single).then(pl.lit("one_answer_of_the_target")).otherwise("reason")
        ),
    ]
    return Part(sft=strong.filter("to_sft"), dpo=None, wrpo=triples, discarded=pl.concat(lost), bounds=bounds)


def fuserl(candidates: pl.DataFrame, rule: FuseRL) -> Part:
    """For SFT a prompt's best answers, for the other prompts a pair of each source, all weighted."""
    to_sft = for_sft(candidates["prompt_key"], rule.sft_fraction)
    examples = candidates.filter(to_sft).group_by("prompt", maintain_order=True).head(rule.top)
    # The best answer of a source is among the best of all if any of its answers is.
    of_source = pl.col("reward").max().over("prompt", "source")
    others = candidates.filter(~to_sft)
    judged, bounds = compared(others, others, _DIFFERENT)
    # In one order, since sums of floats depend on it.
    valid = judged.filter(pl.col("problem").is_null()).sort("prompt", "chosen_tie")
    sft, weightless = weighted(examples.with_columns(best=of_source), rule.temperature)
    dpo, weightless_pairs = weighted(valid.with_columns(best="chosen_reward"), rule.temperature)
    unused = [weightless.select("prompt", "source", "sample_index")]
    for side in ("chosen_", "rejected_"):
        names = {"source": f"{side}source", "sample_index": f"{side}sample_index"}
        unused.append(weightless_pairs.select("prompt", **names))
    return Part(
        sft=sft,
        dpo=dpo,
        discarded=_without_pair(judged),
        bounds=bounds,
        unused=pl.concat(unused).with_columns(reason=pl.lit("no_weight")),
    )


@dataclass(frozen=True)
class Rule:
    """A rule's function, its parameters and its needs."""

    apply: Callable[[pl.DataFrame, Any], Part]
    """A function of a domain's usable candidates, by prompt and best first, and of the parameters."""
    parameters: type[Parameters]
    needs_reward: bool
    needs_verdict: bool


RULES = {
    "margin": Rule(margin, Margin, needs_reward=True, needs_verdict=False),
    "verdict_pairs": Rule(verdict_pairs, VerdictPairs, needs_reward=True, needs_verdict=True),
    "verdict_both": Rule(verdict_both, VerdictBoth, needs_reward=True, needs_verdict=True),
    "one_source": Rule(one_source, OneSource, needs_reward=False, needs_verdict=False),
    "wrpo": Rule(wrpo, WRPO, needs_reward=True, needs_verdict=False),
    "fuserl": Rule(fuserl, FuseRL, needs_reward=True, needs_verdict=False),
}
"""The rules by their names in the configuration."""


def for_sft(prompt_keys: pl.Series, fraction: float) -> pl.Series:
    """Whether each prompt is one of that share which is for SFT.

    Args:
      prompt_keys: `hashing.keys` of the seed and the prompts' ids.
    """
    return hashing.share(hashing.mix(prompt_keys)) < fraction


def best(candidates: pl.DataFrame) -> pl.DataFrame:
    """Each prompt's answer with the highest reward; answers without reward come last."""
    return candidates.unique("prompt", keep="first", maintain_order=True)


def compared(winners: pl.DataFrame, losers: pl.DataFrame, rule: Margins) -> tuple[pl.DataFrame, Bounds]:
    """Each source's best winner beside its worst loser, with the `problem` that keeps them from being a pair, or null;
    and the rule's bounds. Without `same_source`, the best of all sources beside the worst of all.

    Bounds are inclusive, and margins rounded to six decimals: 0.12 - 0.11 is 0.00999... in binary, and in float32 the
    seventh decimal is off already. Equal texts make no pair.
    """
    group = ["prompt", "source"] if rule.same_source else ["prompt"]
    answer = ["source", "sample_index", "reward", "text_hash", "tie"]

    def ends(frame: pl.DataFrame, prefix: str) -> pl.DataFrame:
        # Best first: of equal rewards, the first is chosen and the last rejected.
        end = frame.unique(group, keep="first" if prefix == "chosen" else "last", maintain_order=True)
        return end.select(*group, "prompt_key", *(pl.col(name).alias(f"{prefix}_{name}") for name in answer))

    both = ends(winners, "chosen").join(ends(losers, "rejected").drop("prompt_key"), on=group)
    both = both.with_columns(margin=(pl.col("chosen_reward") - pl.col("rejected_reward")).round(6))
    alike = (
        pl.when(pl.col("chosen_tie") == pl.col("rejected_tie"))
        .then(pl.lit("one_answer"))
        .when(pl.col("chosen_text_hash") == pl.col("rejected_text_hash"))
        .then(pl.lit("equal_texts"))
    )
    both = both.with_columns(problem=alike.cast(PROBLEMS))
    bounds = _bounds(both.filter(pl.col("problem").is_null())["margin"], rule)
    outside = (
        pl.when(pl.col("margin") < pl.lit(bounds.min_margin, pl.Float64))
        .then(pl.lit("margin_too_small"))
        .when(pl.col("margin") > pl.lit(bounds.max_margin, pl.Float64))
        .then(pl.lit("margin_too_wide"))
    )
    return both.with_columns(problem=pl.coalesce("problem", outside.cast(PROBLEMS))), bounds


def _bounds(margins: pl.Series, rule: Margins) -> Bounds:
    """The rule's bounds in the unit of the margins, of which there may be none."""
    ordered = margins.sort()

    def value(bound: float | Quantile | None) -> float | None:
        if not isinstance(bound, Quantile):
            return bound
        # Rounded, since 0.7 of 10 is 7.000000000000001 in binary.
        rank = max(1, math.ceil(round(bound.quantile * len(ordered), 6)))
        return float(ordered[rank - 1]) if len(ordered) else None

    return Bounds(value(rule.min_margin), value(rule.max_margin), len(ordered))


def pairs(judged: pl.DataFrame, pair_source: PairSource) -> pl.DataFrame:
    """At most one pair per prompt, of those `compared` without a problem.

    Between several sources' pairs, `pair_source` decides: "best" takes the one with the best chosen answer, "widest"
    the one with the widest margin, "random" a seeded one. Ties go by the other of reward and margin, then by the hash.
    """
    valid = judged.filter(pl.col("problem").is_null())
    first, second = ("margin", "chosen_reward") if pair_source == "widest" else ("chosen_reward", "margin")
    valid = valid.with_columns(place=hashing.mix(valid["chosen_tie"], valid["rejected_tie"]))
    order = ["place"] if pair_source == "random" else [first, second, "place"]
    valid = valid.sort(order, descending=[name != "place" for name in order])
    return valid.unique("prompt", keep="first", maintain_order=True)


def weighted(records: pl.DataFrame, temperature: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    """With `weight`: a softmax of the column `best`, the highest reward of a record's source, over a prompt's records.

    Returns those that are kept, and those whose weight is 0 in float32, in which it is stored.

    Source: FuseRL (arXiv:2504.06562), but for the division by the sum over the prompt's records here, by which every
    prompt counts the same.
    """
    raw = ((pl.col("best") - pl.col("best").max().over("prompt")) / temperature).exp()
    records = records.with_columns(raw=raw)
    records = records.with_columns(weight=pl.col("raw") / pl.col("raw").sum().over("prompt"))
    counts = pl.col("weight").cast(pl.Float32) > 0
    return records.filter(counts), records.filter(~counts)


def _with_ties(answers: pl.DataFrame, seed: int) -> pl.DataFrame:
    """With the column `tie`, a hash of the seed and of what names the answer: prompt, source and index."""
    sources = answers.select(pl.col("source").unique())
    sources = sources.with_columns(source_key=hashing.keys(seed, sources["source"]))
    keyed = answers.join(sources, on="source")
    return keyed.with_columns(tie=hashing.mix(keyed["prompt_key"], keyed["source_key"], keyed["sample_index"]))


def _by_verdict(candidates: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Those known to be correct, and those known to be wrong."""
    return candidates.filter(pl.col("verdict") == "correct"), candidates.filter(pl.col("verdict") == "wrong")


def _unusable(marks: list[str], domains_with_reward: list[str]) -> pl.Expr:
    """Why an answer cannot be used, neither as chosen nor as rejected; null if it can."""
    needs_reward = pl.col("domain").is_in(domains_with_reward)
    reason = (
        # Where two answers have the same prompt, source and index, nothing tells which one was scored.
        pl.when(pl.col("tie").is_duplicated())
        .then(pl.lit("repeated"))
        .when(pl.col("finish_reason") == "error")
        .then(pl.lit("not_sampled"))
        .when(pl.col("text_hash").is_null())
        .then(pl.lit("empty"))
        .when(pl.col("finish_reason") == "length")
        .then(pl.lit("truncated"))
        .when(pl.col("finish_reason") != "stop")
        .then(pl.lit("not_finished"))
    )
    for mark in marks:
        reason = reason.when(pl.col(mark)).then(pl.lit(mark))
    return (
        reason.when(pl.col("reward").is_null() & needs_reward)
        .then(pl.lit("no_reward"))
        .when(pl.col("reward").is_not_null() & ~pl.col("reward").is_finite())
        .then(pl.lit("non_finite_reward"))
    )


def _lost(prompts: pl.DataFrame, usable: pl.DataFrame, unused: pl.DataFrame) -> pl.DataFrame:
    """Prompts that reach the rules without any usable answer, by the stage at which the most advanced one was lost."""
    scored = unused.filter(pl.col("reason").is_in(NO_REWARD))
    sampled = unused.filter(pl.col("reason") != "not_sampled")
    lost = prompts.select("prompt").join(usable, on="prompt", how="anti")
    return lost.with_columns(
        asked=pl.col("prompt").is_in(sampled["prompt"].unique().implode()),
        scored=pl.col("prompt").is_in(scored["prompt"].unique().implode()),
    ).select(
        "prompt",
        stage=pl.when("scored").then(pl.lit("score")).otherwise(pl.lit("sample")),
        reason=pl.when("scored")
        .then(pl.lit("no_usable_reward"))
        .when("asked")
        .then(pl.lit("no_usable_answer"))
        .otherwise(pl.lit("no_answer")),
    )


def _without_correct(candidates: pl.DataFrame, correct: pl.DataFrame) -> pl.DataFrame:
    """The prompts without a correct answer: some answer is known to be wrong, or nothing is known of any."""
    wrong = candidates.filter(pl.col("verdict") == "wrong")
    refuted = _without(candidates.join(wrong, on="prompt", how="semi"), correct, "no_correct_answer")
    return pl.concat([refuted, _without(candidates, pl.concat([correct, wrong]), "no_verdict")])


def _explained(discarded: pl.DataFrame, unused: pl.DataFrame) -> pl.DataFrame:
    """With the reason of prompts that a rule could use if an answer of theirs had not been unused: why that one was."""
    of_reward = pl.col("reason").is_in(NO_REWARD)
    unusable = (
        unused.filter(pl.col("verdict") == "correct").group_by("prompt").agg(correct_lacks_reward=of_reward.any())
    )
    no_reward = unused.filter(of_reward).select("prompt").unique().with_columns(lacks_reward=True)
    asks_correct = pl.col("reason").is_in(["no_correct_answer", "no_verdict"])
    return (
        discarded.join(unusable, on="prompt", how="left")
        .join(no_reward, on="prompt", how="left")
        .with_columns(
            reason=pl.when(asks_correct & pl.col("correct_lacks_reward"))
            .then(pl.lit("correct_without_reward"))
            .when(asks_correct & pl.col("correct_lacks_reward").is_not_null())
            .then(pl.lit("correct_unusable"))
            .when((pl.col("reason") == "one_answer") & pl.col("lacks_reward"))
            .then(pl.lit("one_reward"))
            .otherwise("reason")
        )
        .select("prompt", "reason")
    )


def _without_pair(judged: pl.DataFrame) -> pl.DataFrame:
    """The prompts of which no pair is valid: the problem of the source that came closest to one."""
    valid = judged.filter(pl.col("problem").is_null())
    furthest = judged.sort("problem").unique("prompt", keep="last")
    return furthest.join(valid, on="prompt", how="anti").select(
        "prompt", pl.col("problem").cast(pl.String).alias("reason")
    )


def _without(candidates: pl.DataFrame, kept: pl.DataFrame, reason: str) -> pl.DataFrame:
    """The prompts of `candidates` that have no row in `kept`."""
    lost = candidates.join(kept, on="prompt", how="anti").select(pl.col("prompt").unique())
    return lost.with_columns(reason=pl.lit(reason))
