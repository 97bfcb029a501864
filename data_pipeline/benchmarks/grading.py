"""Answers to grades: `graded/MODEL/BENCHMARK.parquet`, made again when an answer, a judgment or the code changes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from etils import epath

from data_pipeline import scoring, stage_files
from data_pipeline.benchmarks import judge
from data_pipeline.benchmarks.benchmark import Answer, Benchmark, Grade, Graded, Judged, Tools
from data_pipeline.benchmarks.config import BenchmarkConfig
from fusejax.common.cli import note

SCHEMA = pl.Schema(
    [
        *((name, pl.String()) for name in ("id", "unit", "stratum")),
        ("index", pl.Int64()),
        *((name, pl.List(pl.String())) for name in ("answers", "finish_reasons")),
        ("tokens", pl.Int64()),
        ("score", pl.Float64()),
        *((name, pl.String()) for name in ("extracted", "detail")),
    ]
)
"""Columns of a graded table, one row per answer, and a benchmark's own numbers behind them. `answers` and
`finish_reasons` have an entry per turn."""
_CODE = sorted(
    path
    for folder in (
        Path(__file__).parent,
        *(Path(scoring.__file__).parent / name for name in ("math", "code", "sandbox")),
    )
    for path in folder.rglob("*.py")
)


def graded(
    config: BenchmarkConfig, benchmark: Benchmark, model: str, answers: Sequence[Answer], data_sha256: str
) -> pl.DataFrame:
    """The grades of one model's answers to one benchmark.

    Args:
      data_sha256: of the items, from `data.sha256`.

    Raises:
      UserError: a judge cannot be reached, or programs cannot be run.
    """
    output = epath.Path(config.output_dir)
    path = output / "graded" / model / f"{benchmark.name}.parquet"
    judging = config.judge_of(benchmark.name) if isinstance(benchmark, Judged) else None
    inputs = stage_files.fingerprint(
        data_sha256,
        [[answer.item.id, answer.index, answer.texts, answer.finish_reasons] for answer in answers],
        config.profile,
        config.verifier.model_dump(),
        judging and [judging.model, judging.model_dump(mode="json")],
        *_CODE,
    )

    def work() -> str:
        if isinstance(benchmark, Judged):
            assert judging is not None
            grades = judge.judge(benchmark, answers, judging, output / "judgments")
        else:
            assert isinstance(benchmark, Graded)
            grades = benchmark.grade(
                answers, config.profile, Tools(config.workers, config.allow_unsafe, config.verifier)
            )
        table = frame(answers, grades)
        stage_files.write_parquet(table, path)
        scores = table["score"]
        return f"{len(table):,} answers, {scores.null_count():,} without a grade"

    step = f"benchmark {benchmark.name} of {model}"
    stage_files.once(output, step, inputs, [path], work)
    table = stage_files.read_parquet(path, list(SCHEMA), made_by="benchmark")
    if lost := int(table["detail"].str.contains(f": {judge.MALFORMED}: ").sum()):
        note(f"{step}: a judge's replies about {lost:,} answers were malformed: the same command asks again")
        stage_files.forget(output, step)
    return table


def frame(answers: Sequence[Answer], grades: Sequence[Grade]) -> pl.DataFrame:
    """A row per answer with its grade."""
    names = list(grades[0].values) if grades else []
    schema = pl.Schema([*SCHEMA.items(), *((name, pl.Float64()) for name in names)])
    rows: list[dict[str, Any]] = [
        {
            "id": answer.item.id,
            "unit": answer.item.unit or answer.item.id,
            "stratum": answer.item.stratum,
            "index": answer.index,
            "answers": list(answer.texts),
            "finish_reasons": list(answer.finish_reasons),
            "tokens": answer.tokens,
            "score": grade.score,
            "extracted": grade.extracted,
            "detail": grade.detail,
            **grade.values,
        }
        for answer, grade in zip(answers, grades, strict=True)
    ]
    return pl.DataFrame(rows, schema=schema)
