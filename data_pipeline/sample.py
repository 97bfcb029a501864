"""Stage `sample`: every source answers every prompt of its domains, to `samples/{source}.parquet`.

Answers are kept for good in `samples/.answers/{source}/`, each under a key: the hash of the model's revision, the
rendered prompt's token ids, the sampling parameters, the sample's index and its seed. A run asks for the keys that are
not there yet, so a killed run goes on where it was, nothing is asked twice, and answers that are not wanted now wait
there. The seed is a hash of (run seed, source, rendered prompt, sample index), never a count. Which software made an
answer is recorded with it, but is not part of the key.

A prompt that a source cannot be asked is in `rejected/sample-{source}.jsonl` with the reason, and its rows in the table
have the finish reason "error". Flaws are told by looking at the answers in the end, so judging them otherwise asks
nothing again.
"""

import functools
import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from etils import epath

from data_pipeline import flaws, store
from data_pipeline.answers import AnswerStore
from data_pipeline.config import PipelineConfig, SourceConfig
from data_pipeline.progress import Progress
from data_pipeline.prompts import SCHEMA as PROMPTS_SCHEMA
from data_pipeline.samplers import checkpoint
from data_pipeline.samplers.base import Answered, Request, open_sampler
from data_pipeline.samplers.chat import ChatTokenizer, Refused
from fusejax.cli import UserError, note
from fusejax.files import write_text

_ROW = {"key": pl.String, "prompt_id": pl.String, "source": pl.String, "sample_index": pl.Int64}
_ANSWER = {
    "seed": pl.Int64,
    "text": pl.String,
    "finish_reason": pl.String,
    "error": pl.String,
    "prompt_tokens": pl.Int64,
    "completion_tokens": pl.Int64,
    "model": pl.String,
    "revision": pl.String,
    "dtype": pl.String,
    "temperature": pl.Float64,
    "top_p": pl.Float64,
    "repetition_penalty": pl.Float64,
    "max_new_tokens": pl.Int64,
    "engine": pl.String,
}
STORED = pl.Schema({"key": pl.String, **_ANSWER})
SCHEMA = pl.Schema({**_ROW, **_ANSWER, "flaw": pl.String})
ALL_REFUSED = 20
"""So many refusals before the first answer are a mistake in the source's entry, and end the run."""


def run(config: PipelineConfig) -> None:
    """Writes `samples/{source}.parquet` and `rejected/sample-{source}.jsonl` for each source.

    Sources with servers are asked side by side; the others one after another, meanwhile.

    Raises:
      UserError: no prompts, a source that cannot be loaded or reached, or a samples file of another maker in the way.
    """
    prompts_path = epath.Path(config.output_dir) / "prompts.parquet"
    prompts = store.read_parquet(prompts_path, list(PROMPTS_SCHEMA), made_by="prompts")
    directories = locate(config)
    stop = threading.Event()
    tasks = [
        (source, functools.partial(_sample_source, config, source, prompts, directories[source.name], stop))
        for source in config.sources
    ]
    with ThreadPoolExecutor(len(tasks)) as pool:
        served = [pool.submit(task) for source, task in tasks if source.server is not None]
        try:
            for source, task in tasks:
                if source.server is None:
                    task()
            for future in served:
                future.result()
        except KeyboardInterrupt:
            stop.set()
            raise


def locate(config: PipelineConfig) -> dict[str, Path]:
    """Where each source's checkpoint lies: found out before the first source is asked, for sampling takes long.

    Raises:
      UserError: one is nowhere.
    """
    return {
        source.name: checkpoint.locate(source.model, source.revision, weights=source.server is None)
        for source in config.sources
    }


@dataclass(frozen=True)
class _Wanted:
    """What the table is to hold."""

    rows: list[tuple[str | None, str, int]]
    """(key, prompt, sample index), ordered by prompt and index; no key where the prompt was rejected."""
    requests: dict[str, Request]
    rejected: dict[str, str]
    """Prompt -> `reason: detail`."""


def _sample_source(
    config: PipelineConfig, source: SourceConfig, prompts: pl.DataFrame, directory: Path, stop: threading.Event
) -> None:
    output = epath.Path(config.output_dir)
    final, rejected = output / "samples" / f"{source.name}.parquet", output / "rejected" / f"sample-{source.name}.jsonl"
    prompts = prompts.filter(pl.col("domain").is_in(source.domains))
    if prompts.is_empty():
        raise UserError(f"sources: {source.name}: no prompt in its domains {', '.join(source.domains)}")
    columns = {"model": source.model, "revision": checkpoint.revision(directory), **_sampling(config, source)}
    counts = {domain: getattr(config.samples_per_prompt, domain) for domain in source.domains}
    limits = [config.max_new_tokens, source.max_model_len]
    chosen = prompts.select("id", "domain", "messages").rows()
    inputs = store.fingerprint(
        source.name, config.seed, columns, counts, limits, store.fingerprint(*chosen), Path(flaws.__file__)
    )
    step = f"sample {source.name}"

    def work() -> str:
        tokenizer = ChatTokenizer(source.name, directory, source.max_model_len)
        note(f"{step}: rendering {len(prompts):,} prompts")
        wanted = _wanted(config, source, prompts, tokenizer, columns)
        with AnswerStore(final.parent / ".answers" / source.name, STORED) as answers:
            if final.exists():
                # Of a directory that came without its part files.
                answers.adopt(_earlier(final))
            missing = len(wanted.requests.keys() - answers.keys)
            if missing:
                _ask(config, source, directory, tokenizer.context, wanted, columns, answers, stop)
            known = answers.table()
        table = _table(source, wanted, known)
        lines = [
            {"where": prompt, "reason": reason.split(":")[0], "detail": reason}
            for prompt, reason in wanted.rejected.items()
        ]
        write_text(rejected, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        store.write_parquet(table, final)
        return _summary(table, missing, Counter(line["reason"] for line in lines))

    store.once(output, step, inputs, [final, rejected], work)


def _sampling(config: PipelineConfig, source: SourceConfig) -> dict[str, Any]:
    chosen = source.model_dump(include={"temperature", "top_p", "repetition_penalty"})
    return {"dtype": config.sampler.dtype, **chosen}


def _wanted(
    config: PipelineConfig,
    source: SourceConfig,
    prompts: pl.DataFrame,
    tokenizer: ChatTokenizer,
    columns: dict[str, Any],
) -> _Wanted:
    wanted = _Wanted([], {}, {})
    kind = {name: value for name, value in columns.items() if name != "model"}
    for prompt in prompts.iter_rows(named=True):
        count = getattr(config.samples_per_prompt, prompt["domain"])
        try:
            ids = tokenizer.encode(prompt["messages"])
        except Refused as error:
            wanted.rejected[prompt["id"]] = str(error)
            wanted.rows.extend((None, prompt["id"], index) for index in range(count))
            continue
        limit = min(config.max_new_tokens, tokenizer.context - len(ids))
        rendered, shared = store.fingerprint(ids), tuple(ids)
        for index in range(count):
            seed = store.rank(config.seed, "sample", source.name, rendered, str(index))
            key = store.fingerprint(kind, rendered, limit, index, seed)
            wanted.rows.append((key, prompt["id"], index))
            wanted.requests[key] = Request(key, shared, seed, limit)
    return wanted


def _ask(
    config: PipelineConfig,
    source: SourceConfig,
    directory: Path,
    context: int,
    wanted: _Wanted,
    columns: dict[str, Any],
    answers: AnswerStore,
    stop: threading.Event,
) -> None:
    """Asks for what the store does not hold."""
    requests = list(wanted.requests.values())
    present = len(wanted.requests.keys() & answers.keys)
    note(f"sample {source.name}: {len(requests) - present:,} of {len(requests):,} answers to make")
    sampler = open_sampler(config, source, directory, context)
    try:
        progress = Progress(f"sample {source.name}", present, len(requests))
        for batch in _plausible(sampler.generate(requests, frozenset(answers.keys)), source):
            rows = [
                {
                    "key": request.key,
                    "seed": request.seed,
                    "prompt_tokens": len(request.prompt),
                    "max_new_tokens": request.max_tokens,
                    **columns,
                    **vars(answer),
                    "engine": sampler.engine,
                }
                for request, answer in batch
            ]
            answers.append(rows)
            progress.add(len(batch), sum(answer.completion_tokens for _, answer in batch))
            if stop.is_set():
                raise KeyboardInterrupt
    finally:
        sampler.close()


def _plausible(batches: Iterator[Answered], source: SourceConfig) -> Iterator[Answered]:
    """The batches, but refusals are held back until there is an answer: many of them alone are a mistake of ours."""
    held: Answered = []
    for batch in batches:
        held += batch
        if all(answer.error for _, answer in held):
            if len(held) >= ALL_REFUSED:
                raise UserError(f"sources: {source.name}: the first {len(held)} requests failed: {held[0][1].error}")
            continue
        yield held
        break
    else:
        if held:
            yield held
        return
    yield from batches


def _table(source: SourceConfig, wanted: _Wanted, known: pl.DataFrame) -> pl.DataFrame:
    """A row a wanted sample, in order, with what is known of it."""
    rows = pl.DataFrame(wanted.rows, schema=["key", "prompt_id", "sample_index"], orient="row")
    rows = rows.with_columns(pl.col("key").cast(pl.String), source=pl.lit(source.name))
    known = known.filter(pl.col("key").is_in(list(wanted.requests)))
    table = rows.join(known, on="key", how="left", maintain_order="left")
    reasons = [wanted.rejected.get(prompt) for prompt in table["prompt_id"]]
    table = table.with_columns(error=pl.coalesce(pl.Series(reasons, dtype=pl.String), pl.col("error")))
    table = table.with_columns(
        pl.when(pl.col("key").is_null())
        .then(pl.lit("error"))
        .otherwise(pl.col("finish_reason"))
        .alias("finish_reason"),
        pl.col("text").fill_null(""),
        pl.col("completion_tokens").fill_null(0),
    )
    marks = [
        None if reason == "error" else flaws.flaw(text, reason)
        for text, reason in zip(table["text"], table["finish_reason"], strict=True)
    ]
    # In one piece, as the bytes of the file depend on the pieces.
    return table.with_columns(flaw=pl.Series(marks, dtype=pl.String)).select(SCHEMA.names()).cast(SCHEMA).rechunk()


def _earlier(final: epath.Path) -> pl.DataFrame:
    try:
        table = store.read_parquet(final, STORED.names(), made_by="sample")
    except UserError as error:
        raise UserError(f"{error}; it is not of this stage: move it away to sample anew") from None
    return table.filter(pl.col("key").is_not_null()).select(STORED.names()).unique("key", keep="first")


def _summary(table: pl.DataFrame, new: int, rejected: Counter[str]) -> str:
    finished = dict(table["finish_reason"].value_counts().sort("finish_reason").iter_rows())
    marked = dict(table["flaw"].drop_nulls().value_counts().sort("flaw").iter_rows())
    return (
        f"{len(table):,} answers, {new:,} of them new; finished by {finished}"
        + (f"; flaws {marked}" if marked else "")
        + (f"; {rejected.total():,} prompts rejected {dict(rejected)}" if rejected else "")
    )
