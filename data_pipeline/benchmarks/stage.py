"""Command `benchmark`: asks, grades, compares, and writes results, table and page."""

import json
from collections.abc import Sequence

import numpy as np
import polars as pl
from etils import epath

from data_pipeline import stage_files
from data_pipeline.benchmarks import contamination, data, page, published, results, table
from data_pipeline.benchmarks.asking import Asker
from data_pipeline.benchmarks.benchmark import Benchmark, Item, Judged
from data_pipeline.benchmarks.config import BenchmarkConfig
from data_pipeline.benchmarks.grading import graded
from data_pipeline.benchmarks.registry import MISSING
from data_pipeline.benchmarks.registry import benchmark as named
from data_pipeline.benchmarks.results import Pair, Result
from data_pipeline.prompts.stage import SCHEMA as PROMPTS_SCHEMA
from fusejax.common import cli
from fusejax.common.cli import UserError, note
from fusejax.common.files import check_writable, write_text


def run(config: BenchmarkConfig) -> None:
    """Writes `answers/`, `judgments/`, `graded/`, `results.json`, `table.md` and `report.html`.

    Raises:
      UserError: data are missing, a model or a judge cannot be asked.
    """
    output = epath.Path(config.output_dir)
    check_writable(output, "output_dir")
    chosen, left_out = choose(config)
    # What can be wrong is found before the first answer: answering may take hours.
    items = {each.name: data.items(config, each) for each in chosen}
    hashes = {name: data.sha256(found) for name, found in items.items()}
    askers = [Asker(config, name) for name in config.models]
    tables: dict[tuple[str, str], pl.DataFrame] = {}
    for asker in askers:
        questions = [question for each in chosen for question in asker.questions(each, items[each.name])]
        answers = asker.ask(questions)
        for each in chosen:
            mine = [answer for question, answer in zip(questions, answers, strict=True) if question.benchmark is each]
            tables[asker.name, each.name] = graded(config, each, asker.name, mine, hashes[each.name])
    held = held_by_training(config, items)
    found = [
        result(config, asker, each, items[each.name], tables[asker.name, each.name], hashes[each.name], held)
        for asker in askers
        for each in chosen
    ]
    pairs = compare(config, chosen, tables)
    about = {
        "profile": config.profile,
        "seed": config.seed,
        "revisions": {asker.name: asker.revision for asker in askers},
        "versions": cli.versions(),
        "not_run": left_out,
    }
    write_text(output / "results.json", json.dumps(results.as_json(found, pairs, about), indent=2) + "\n")
    text = table.markdown(found, pairs, left_out, config.profile)
    write_text(output / "table.md", text)
    write_text(output / "report.html", page.report(found, pairs, left_out, config.profile))
    print(text, flush=True)
    note(f"{output / 'results.json'}, {output / 'table.md'}, {output / 'report.html'}")


def choose(config: BenchmarkConfig) -> tuple[list[Benchmark], list[str]]:
    """The benchmarks that are run, and a line on each that is not.

    Raises:
      UserError: one that the configuration names needs a judge, and there is none.
    """
    chosen, left_out = [], []
    for name in config.chosen:
        found = named(name)
        if not isinstance(found, Judged) or config.judge_of(name) is not None:
            chosen.append(found)
            continue
        problem = f"it needs a judge: set judge.{name} or judge.default"
        if config.benchmarks != "all":
            raise UserError(f"benchmarks: {name}: {problem}")
        left_out.append(f"{found.title}: {problem}")
    return chosen, [*left_out, *MISSING] if config.benchmarks == "all" else left_out


def held_by_training(config: BenchmarkConfig, items: dict[str, list[Item]]) -> dict[str, set[str]] | None:
    """Benchmark -> the ids of its items that the training prompts hold; None where no prompts are named.

    Raises:
      UserError: a table of prompts cannot be read.
    """
    if not config.training:
        return None
    texts = {f"{name}\0{item.id}": item.text for name, found in items.items() for item in found}
    prompts = (
        turn["content"]
        for path in config.training
        for messages in stage_files.read_parquet(epath.Path(path), list(PROMPTS_SCHEMA), made_by="prompts")["messages"]
        for turn in messages
        if turn["role"] == "user"
    )
    seen = contamination.held(texts, prompts)
    return {name: {item.id for item in found if f"{name}\0{item.id}" in seen} for name, found in items.items()}


def result(
    config: BenchmarkConfig,
    asker: Asker,
    benchmark: Benchmark,
    items: Sequence[Item],
    rows: pl.DataFrame,
    data_sha256: str,
    held: dict[str, set[str]] | None,
) -> Result:
    """One model's result in one benchmark, of its graded rows."""
    judging = config.judge_of(benchmark.name) if isinstance(benchmark, Judged) else None
    judge = judging.model if judging else None
    score = results.interval(benchmark, rows, config.bootstrap, config.seed)
    mine = None if held is None else held[benchmark.name]
    clean = rows.filter(~pl.col("id").is_in(mine)) if mine else None
    found = getattr(benchmark, "details", None)
    details = found(rows, np.ones(len(rows))) if found else {}
    caveats = published.caveats(benchmark.name, config.profile, judge, len(items))
    if letters := details.get("binarised"):
        caveats.append("the published preferences are probabilities, of ours some or all are letters")
    same = judge == published.JUDGES.get(benchmark.name) and not letters
    return Result(
        model=asker.name,
        benchmark=benchmark.name,
        title=benchmark.title,
        scale=benchmark.scale,
        score=score,
        items=len(items),
        answers=len(rows),
        tokens=float(rows["tokens"].mean() or 0.0),  # type: ignore[arg-type]
        counts=results.counts(rows),
        judge=judge,
        data_sha256=data_sha256,
        settings_sha256=_settings(config, asker, benchmark, items),
        details=details,
        held=None if mine is None else len(mine),
        without_held=(
            results.interval(benchmark, clean, config.bootstrap, config.seed)
            if clean is not None and not clean.is_empty()
            else None
        ),
        caveats=caveats,
        beside=results.beside(
            benchmark, score, len(items), config.models[asker.name].published, judging is not None, same
        ),
    )


def _settings(config: BenchmarkConfig, asker: Asker, benchmark: Benchmark, items: Sequence[Item]) -> str:
    """The hash of how the items are asked: prompts before tokenisation, and parameters."""
    asked = [
        [
            str(benchmark.asked(item, asker.family, config.profile)),
            str(benchmark.prompt(item, asker.family, config.profile, ())),
        ]
        for item in items
    ]
    return stage_files.fingerprint(config.profile, asker.family, config.chosen[benchmark.name].samples, asked)


def compare(
    config: BenchmarkConfig, chosen: Sequence[Benchmark], tables: dict[tuple[str, str], pl.DataFrame]
) -> list[Pair]:
    """Every model against the one that it names, benchmark by benchmark."""
    found = []
    for name, model in config.models.items():
        for each in chosen if model.against is not None else []:
            mine, theirs = tables[name, each.name], tables[str(model.against), each.name]
            difference = results.pair(each, mine, theirs, config.bootstrap, config.seed)
            if difference is not None:
                found.append(Pair(each.name, name, str(model.against), difference))
    return found
