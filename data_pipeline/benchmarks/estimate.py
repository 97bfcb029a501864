"""What a run will ask, and what that takes: `benchmark --dry-run`. No model is loaded, no server contacted."""

import polars as pl

from data_pipeline.benchmarks import data
from data_pipeline.benchmarks.asking import SOMETIMES, STORED, Asker, Question, Said
from data_pipeline.benchmarks.benchmark import Answer, Benchmark, Judged
from data_pipeline.benchmarks.config import BenchmarkConfig
from data_pipeline.benchmarks.stage import choose
from data_pipeline.sampling import answer_store, estimate
from fusejax.common.cli import note

CHARACTERS = 4
"""Of a token, about; a judge's tokenizer is not here."""


def run(config: BenchmarkConfig) -> None:
    """Prints a table for each model, and one of the judges' calls.

    Raises:
      UserError: data are missing, or a model has no tokenizer.
    """
    chosen, left_out = choose(config)
    items = {each.name: data.items(config, each) for each in chosen}
    first: list[Question] = []
    for number, name in enumerate(config.models):
        note(f"dry run {name}: rendering prompts")
        asker = Asker(config, name)
        questions = [question for each in chosen for question in asker.questions(each, items[each.name])]
        first = questions if number == 0 else first
        known = answer_store.read(asker.folder, STORED, SOMETIMES)
        plan = _plan(asker, questions, known)
        done = estimate.spent(known)
        tokens = int(plan["answer tokens"].sum())
        seconds = estimate.seconds_of(asker.source, tokens, done)
        print(f"{name}: {asker.source.model}, family {asker.family}, profile {config.profile}")
        with estimate.PLAIN:
            print(plan)
        bound = "about" if len(known) or asker.source.cost.answer_tokens else "at most"
        print(f" to come {bound} {tokens:,} tokens: {estimate.to_come(asker.source, tokens, seconds)}\n")
    calls = _calls(config, chosen, first)
    if not calls.is_empty():
        print("judges, for each model")
        with estimate.PLAIN:
            print(calls)
    for line in left_out:
        print(f"not run: {line}")


def _plan(asker: Asker, questions: list[Question], known: pl.DataFrame) -> pl.DataFrame:
    """One row per benchmark. Later turns are counted as many as first ones, with prompts that are not known yet."""
    said = [Said() for _ in questions]
    keys, requests = asker.requests(questions, said, 0)
    rows = []
    for question, key, so_far in zip(questions, keys, said, strict=True):
        request = requests[key] if key else None
        rows.append(
            {
                "benchmark": question.benchmark.name,
                "key": key,
                "refused": so_far.error is not None,
                "prompt": len(request.prompt) if request else 0,
                "most": request.max_tokens if request else 0,
                "turns": question.benchmark.turns,
            }
        )
    lengths = known.select("key", length=pl.when(pl.col("error").is_null()).then("completion_tokens"), stored=True)
    frame = pl.DataFrame(rows, schema_overrides={"key": pl.String}).join(
        lengths, on="key", how="left", maintain_order="left"
    )
    expected = pl.coalesce(
        pl.lit(asker.source.cost.answer_tokens, pl.Float64),
        pl.col("length").mean().over("benchmark"),
        pl.lit(lengths["length"].mean(), pl.Float64),
        pl.col("most"),
    )
    to_make = pl.col("stored").is_null() & ~pl.col("refused")
    return (
        frame.with_columns(expected=pl.min_horizontal(expected, "most"))
        .group_by("benchmark", maintain_order=True)
        .agg(
            answers=(pl.col("turns").sum()).cast(pl.Int64),
            refused=pl.col("refused").sum().cast(pl.Int64),
            stored=pl.col("stored").count().cast(pl.Int64),
            **{
                "to make": (pl.col("turns").filter(to_make)).sum().cast(pl.Int64),
                "prompt tokens": pl.col("prompt").filter(to_make).sum().cast(pl.Int64),
                "answer tokens": (pl.col("expected") * pl.col("turns")).filter(to_make).sum().round().cast(pl.Int64),
            },
        )
    )


def _calls(config: BenchmarkConfig, chosen: list[Benchmark], questions: list[Question]) -> pl.DataFrame:
    """One row per judged benchmark: calls, and their tokens without the answers that they will hold."""
    rows = []
    for benchmark in chosen:
        judging = config.judge_of(benchmark.name)
        if not isinstance(benchmark, Judged) or judging is None:
            continue
        blank = ("",) * benchmark.turns
        asked = [
            call
            for question in questions
            if question.benchmark is benchmark
            for call in benchmark.calls(Answer(question.item, question.index, blank, ("stop",) * benchmark.turns, 0))
        ]
        characters = sum(len(turn["content"]) for call in asked for turn in call.messages)
        rows.append(
            {
                "benchmark": benchmark.name,
                "judge": judging.model,
                "calls": len(asked),
                "tokens in, without answers": characters // CHARACTERS,
                "tokens out, at most": sum(call.max_tokens for call in asked),
            }
        )
    return pl.DataFrame(rows)
