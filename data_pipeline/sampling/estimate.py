"""How many answers each source will be sampled for, and the time and GPU-hours they will take: `sample --dry-run`.

Answers in the store are not sampled again; the estimate is made from their lengths and times. No model is loaded and no
server contacted: tokenizers and configurations are enough.
"""

import math
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta

import polars as pl

from data_pipeline.config import LATER, PipelineConfig, SourceConfig
from data_pipeline.sampling import answer_keys, answer_store, checkpoint
from data_pipeline.sampling import stage as sample
from data_pipeline.sampling.answer_keys import SamplePlan
from fusejax.common import redact
from fusejax.common.cli import note

_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
PLAIN = pl.Config(
    tbl_formatting="NOTHING",
    tbl_hide_column_data_types=True,
    tbl_hide_dataframe_shape=True,
    tbl_cell_numeric_alignment="RIGHT",
    tbl_cols=-1,
    tbl_rows=-1,
    tbl_width_chars=160,
    thousands_separator=",",
    apply_on_context_enter=True,
)


@dataclass(frozen=True)
class Spent:
    """What the answers in a source's store took, whether this config uses them or not."""

    answers: int
    tokens: int
    """Answer tokens."""
    seconds: float
    """Time of sampling, without loading the model."""


def run(config: PipelineConfig) -> None:
    """Prints a plan for each source, and their sum.

    Raises:
      UserError: no prompts, or a source without a tokenizer.
    """
    prompts = sample.read_prompts(config)
    answers_left, tokens_left, hours_left = 0, 0, 0.0
    without_rate = []
    for source in config.sources:
        note(f"dry run {source.name}: rendering prompts")
        known = answer_store.read(sample.store_folder(config, source), sample.STORED)
        done = spent(known)
        title, plan = _plan(config, source, config.prompts_of(source, prompts), known)
        tokens = int(plan["answer tokens"].sum())
        seconds = seconds_of(source, tokens, done)
        print(title)
        with PLAIN:
            print(plan)
        if done.seconds:
            print(f" so far {_so_far(source, done)}")
        bound = "about" if source.cost.answer_tokens or len(known) else "at most"
        print(f" to come {bound} {tokens:,} tokens: {to_come(source, tokens, seconds)}\n")
        answers_left += int(plan["to make"].sum())
        tokens_left += tokens
        if seconds is None:
            without_rate.append(source.name)
        else:
            hours_left += seconds * gpus(source) / 3600
    rest = f", besides those of {', '.join(without_rate)}" if without_rate else ""
    print(f"all: {answers_left:,} answers, {tokens_left:,} tokens, {hours_left:,.1f} GPU-hours{rest}", flush=True)


def spent(known: pl.DataFrame) -> Spent:
    """What answers took, as far as it was measured.

    Args:
      known: a source's answers, with the columns `STORED` of `sampling.stage`.
    """
    timed = known.filter(pl.col("seconds").is_not_null())
    return Spent(len(timed), int(timed["completion_tokens"].sum()), float(timed["seconds"].sum()))


def gpus(source: SourceConfig) -> int:
    """How many GPUs the source takes."""
    return source.cost.gpus or math.prod(source.engine.get(name, 1) for name in _PARALLEL)


def seconds_of(source: SourceConfig, tokens: int, done: Spent) -> float | None:
    """How long this many answer tokens take; None where no rate is given or measured."""
    rate = source.cost.tokens_per_second or (done.tokens / done.seconds if done.seconds else 0)
    return 0.0 if tokens == 0 else tokens / rate if rate else None


def _plan(
    config: PipelineConfig, source: SourceConfig, prompts: pl.DataFrame, known: pl.DataFrame
) -> tuple[str, pl.DataFrame]:
    """A line about the source, and one row per domain."""
    chat = source.chat_server is not None
    directory = None if chat else checkpoint.locate(source.model, source.revision, weights=False)
    tokenizer = sample.tokenizer_of(config, source, directory)
    common = answer_keys.sampling_parameters(config, source, directory)
    asked = answer_keys.plan_samples(config, source, prompts, tokenizer, common)
    where = redact.shown(source.server.url) if source.server else config.backend(source)
    shown = ("temperature", "top_p", "repetition_penalty", *LATER)
    parameters = ", ".join(f"{name} {common[name]}" for name in shown if name in common)
    title = f"{source.name}: {source.model} at {common['revision'][:12]} by {where}, {parameters}"
    plan = _by_domain(source, prompts, asked, known)
    # Only the server that renders the prompts knows their tokens.
    return title, plan.drop("prompt tokens") if chat else plan


def _by_domain(source: SourceConfig, prompts: pl.DataFrame, asked: SamplePlan, known: pl.DataFrame) -> pl.DataFrame:
    domains = dict(prompts.select("id", "domain").iter_rows())
    domain_of = {key: domains[prompt] for key, prompt, _ in asked.rows}
    requests = pl.DataFrame(
        [(key, domain_of[key], len(each.prompt), each.max_tokens) for key, each in asked.requests.items()],
        schema={"key": pl.String, "domain": pl.String, "prompt": pl.Int64, "most": pl.Int64},
        orient="row",
    )
    length = pl.when(pl.col("error").is_null()).then("completion_tokens")
    lengths = known.select("key", length=length, stored=True)
    requests = requests.join(lengths, on="key", how="left", maintain_order="left")
    # The first that is known: the config's value, the mean in the domain so far, the mean in all so far, the limit.
    expected = pl.coalesce(
        pl.lit(source.cost.answer_tokens, pl.Float64),
        pl.col("length").mean().over("domain"),
        pl.lit(lengths["length"].mean(), pl.Float64),
        pl.col("most"),
    )
    to_make = pl.col("stored").is_null()
    plan = (
        requests.with_columns(expected=pl.min_horizontal(expected, "most"))
        .group_by("domain", maintain_order=True)
        .agg(
            pl.col("stored").count(),
            to_make.sum().cast(pl.Int64).alias("to make"),
            pl.col("prompt").filter(to_make).sum().alias("prompt tokens"),
            pl.col("expected").filter(to_make).sum().round().cast(pl.Int64).alias("answer tokens"),
        )
    )
    refused = Counter(domains[prompt] for prompt in asked.rejected)
    counts = prompts.group_by("domain", maintain_order=True).agg(prompts=pl.len().cast(pl.Int64))
    counts = counts.with_columns(refused=pl.col("domain").replace_strict(refused, default=0, return_dtype=pl.Int64))
    return counts.join(plan, on="domain", how="left", maintain_order="left").fill_null(0)


def _so_far(source: SourceConfig, done: Spent) -> str:
    rate, hours = done.tokens / done.seconds, done.seconds * gpus(source) / 3600
    return f"{done.answers:,} answers, {rate:,.0f} tokens/s on {_gpus(source)}, {hours:,.1f} GPU-hours"


def to_come(source: SourceConfig, tokens: int, seconds: float | None) -> str:
    """The time that this many answer tokens take, in words."""
    if seconds is None:
        return "no rate is known: set cost.tokens_per_second, or sample a few answers"
    if not tokens:
        return "all are there"
    how = "given" if source.cost.tokens_per_second else "measured"
    time, hours = timedelta(seconds=round(seconds)), seconds * gpus(source) / 3600
    return f"{time} at {tokens / seconds:,.0f} tokens/s ({how}) on {_gpus(source)}, {hours:,.1f} GPU-hours"


def _gpus(source: SourceConfig) -> str:
    return f"{gpus(source)} GPU" + ("s" if gpus(source) > 1 else "")
