"""Stage `sample`: every source answers every prompt of its domains; the answers go to `samples/{source}.parquet`.

Answers are kept for good in `samples/.answers/{source}/`, each under its key (see `answer_keys`). A run asks only for
the keys that are not there yet: a killed run goes on where it was, nothing is sampled twice, and answers that this
config does not use stay there for another.

A request that is lost on the way to a server is sent again. One that the server or the engine refuses, such as a prompt
that it finds too long, counts as answered, and its error is kept in place of a text. A prompt that the source's chat
template or context does not admit is not sent at all: it is in `rejected/sample-{source}.jsonl` with the reason, and
its rows in the table have the finish reason "error". A request to which a server gave nothing but malformed answers is
there too, and not in the store: the next run asks again. Thoughts before the answer are cut off, and flaws looked for,
in the table, after sampling: changing how that is done samples nothing again.
"""

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
from etils import epath

from data_pipeline import stage_files
from data_pipeline.config import GivenConfig, PipelineConfig, SourceConfig
from data_pipeline.prompts.stage import SCHEMA as PROMPTS_SCHEMA
from data_pipeline.sampling import answer_keys, checkpoint, flaws, given, given_scores, reasoning
from data_pipeline.sampling.answer_keys import SamplePlan
from data_pipeline.sampling.answer_store import AnswerStore
from data_pipeline.sampling.backends.opening import open_sampler
from data_pipeline.sampling.chat import ChatTokenizer
from data_pipeline.sampling.progress import Progress
from data_pipeline.sampling.sampler import Answer, Answered, Request, Sampler
from fusejax.common.chat_template import DEFAULT_DATE
from fusejax.common.cli import UserError, note
from fusejax.common.files import write_text

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
SOMETIMES = pl.Schema(
    {
        "reasoning": pl.String(),
        "top_k": pl.Int64(),
        "min_p": pl.Float64(),
        "presence_penalty": pl.Float64(),
        "frequency_penalty": pl.Float64(),
        "stop": pl.List(pl.String()),
    }
)
"""Columns of the answer store and of `samples/{source}.parquet` that are there if one of the answers has a value."""
STORED = pl.Schema({"key": pl.String, **_ANSWER, "seconds": pl.Float64})
"""Columns of the answer store. `text` is as it came, with the thought in it; `reasoning` is a thought that came apart
from it. `seconds` is the answer's share of the time since the batch before: summed over all
answers, the time that sampling took."""
SCHEMA = pl.Schema({**_ROW, **_ANSWER, **dict.fromkeys(flaws.FLAWS, pl.Boolean)})
"""Columns of `samples/{source}.parquet`, and `SOMETIMES` others, and those of `given_scores` where given answers have
some. Not `seconds`, which differs from run to run: the table depends only on what was asked."""
ALL_REFUSED = 20
"""Refused requests, without any answer, after which the run ends: the source's entry in the config must be wrong. Also
so many requests in a row that get only malformed answers: then the server is."""


def run(config: PipelineConfig) -> None:
    """Writes `samples/{source}.parquet` and `rejected/sample-{source}.jsonl` for each source; for answers that come
    with a data set, only the table.

    Sources with servers are sampled in parallel; meanwhile, the others one after another in this process.

    Raises:
      UserError: no prompts, a source that cannot be loaded or reached, or a samples file that another program made is
        in the way.
    """
    import transformers  # noqa: F401  Before threads start: they must not see it half imported.

    prompts = read_prompts(config)
    directories = locate(config)
    stop = threading.Event()
    for entry in config.given:
        _take_given(config, entry, prompts)
    others = len(config.sources) > 1 and any(source.server is not None for source in config.sources)

    def sample(source: SourceConfig) -> None:
        try:
            _sample_source(config, source, prompts, directories.get(source.name), stop)
        except UserError as error:
            if others:  # They go on, maybe for days: report this now, not at the end.
                note(f"sample {source.name} failed: {error}")
            raise

    with ThreadPoolExecutor(len(config.sources) + 1) as pool:
        served = [pool.submit(sample, source) for source in config.sources if source.server is not None]
        try:
            for source in config.sources:
                if source.server is None:
                    sample(source)
            for future in served:
                future.result()
        except KeyboardInterrupt:
            stop.set()
            raise


def locate(config: PipelineConfig) -> dict[str, Path]:
    """Where each source's checkpoint is on disk: checked before sampling, which takes long, begins. Models behind chat
    servers need none.

    Raises:
      UserError: one is not found.
    """
    return {
        source.name: checkpoint.locate(source.model, source.revision, weights=source.server is None)
        for source in config.sources
        if source.chat_server is None
    }


def read_prompts(config: PipelineConfig) -> pl.DataFrame:
    """The table of the stage `prompts`.

    Raises:
      UserError: it does not exist.
    """
    path = epath.Path(config.output_dir) / "prompts.parquet"
    return stage_files.read_parquet(path, list(PROMPTS_SCHEMA), made_by="prompts")


def store_folder(config: PipelineConfig, source: SourceConfig) -> epath.Path:
    """Where the source's answers are kept."""
    return epath.Path(config.output_dir) / "samples" / ".answers" / source.name


def _sample_source(
    config: PipelineConfig, source: SourceConfig, prompts: pl.DataFrame, directory: Path | None, stop: threading.Event
) -> None:
    output = epath.Path(config.output_dir)
    final, rejected = output / "samples" / f"{source.name}.parquet", output / "rejected" / f"sample-{source.name}.jsonl"
    prompts = config.prompts_of(source, prompts)
    if prompts.is_empty():
        raise UserError(f"sources: {source.name}: no prompt in its domains {', '.join(source.domains)}")
    common = answer_keys.sampling_parameters(config, source, directory)
    step = f"sample {source.name}"
    lost: dict[str, str] = {}

    def work() -> str:
        tokenizer = tokenizer_of(config, source, directory)
        note(f"{step}: rendering {len(prompts):,} prompts" if tokenizer else f"{step}: {_NO_TOKENS}")
        asked = answer_keys.plan_samples(config, source, prompts, tokenizer, common)
        if tokenizer and tokenizer.changes:
            counts = ", ".join(f"{count:,} {change}" for change, count in sorted(tokenizer.changes.items()))
            note(f"{step}: of {len(prompts):,} prompts {counts}")
        with AnswerStore(store_folder(config, source), STORED, SOMETIMES) as answers:
            if final.exists():
                # The table in a directory that was copied without its part files.
                answers.adopt(_earlier(final))
            missing = len(asked.requests.keys() - answers.keys)
            if missing:
                total = len(asked.requests)
                note(f"{step}: {missing:,} of {total:,} answers to make")
                sampler = _sampler(config, source, directory, tokenizer.context if tokenizer else 0)
                try:
                    progress = Progress(step, total - missing, total)
                    lost.update(ask(sampler, source, asked, common, answers, progress, stop))
                finally:
                    sampler.close()
            known = answers.table()
        first = next(iter(asked.requests.values()), None)
        opened = tokenizer.opened(first.prompt) if tokenizer and first else ""
        table = _table(source, asked, known, lost, opened)
        problems = [*asked.rejected.items(), *((prompt, lost[key]) for key, prompt, _ in asked.rows if key in lost)]
        lines = [{"where": prompt, "reason": why.split(":")[0], "detail": why} for prompt, why in problems]
        write_text(rejected, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        stage_files.write_parquet(table, final)
        return _summary(table, missing, asked.rejected, len(lost))

    stage_files.once(output, step, _inputs(config, source, prompts, common), [final, rejected], work)
    if lost:
        stage_files.forget(output, step)


_NO_TOKENS = "a chat server renders the prompts and knows their tokens; it refuses those that are too long for it"


def tokenizer_of(config: PipelineConfig, source: SourceConfig, directory: Path | None) -> ChatTokenizer | None:
    """The tokenizer that renders the source's prompts; None behind a chat server, which does so itself.

    Raises:
      UserError: it cannot be loaded, or has no chat template that takes the source's arguments.
    """
    if directory is None:
        return None
    return ChatTokenizer(source.name, directory, source.max_model_len, source.chat_template_kwargs, config.chat.date)


def _inputs(config: PipelineConfig, source: SourceConfig, prompts: pl.DataFrame, common: dict[str, Any]) -> str:
    """The fingerprint of all that the source's table depends on."""
    counts = {domain: config.domains[domain].samples for domain in source.domains}
    settings = [common, counts, config.max_new_tokens, source.max_model_len, source.engine]
    body = source.server.extra_body if source.server else {}
    settings += [later for later in (source.chat_template_kwargs, body) if later]
    if config.chat.date != DEFAULT_DATE:
        settings.append(str(config.chat.date))
    chosen = prompts.select("id", "domain", "messages").rows()
    return stage_files.fingerprint(source.name, config.seed, settings, stage_files.fingerprint(*chosen), *_CODE)


_CODE = (Path(flaws.__file__), Path(reasoning.__file__))
"""What tables are made by, after sampling."""


def ask(
    sampler: Sampler,
    source: SourceConfig,
    asked: SamplePlan,
    common: dict[str, Any],
    answers: AnswerStore,
    progress: Progress,
    stop: threading.Event,
) -> dict[str, str]:
    """Asks for what the store does not hold, and keeps each answer the moment it is there. Returns the keys of requests
    that got only malformed answers, which are not kept, each with the problem.

    Args:
      sampler: of the source.
      source: whose model is asked.
      asked: its sample plan.
      common: its `answer_keys.sampling_parameters`.
      answers: its store.
      progress: counts every answer.
      stop: ends the work, by KeyboardInterrupt, when it is set.

    Raises:
      UserError: the source refuses everything; also the sampler's own errors.
    """
    before = time.monotonic()
    lost: dict[str, str] = {}
    # Closed before the sampler is, even after an error.
    with contextlib.closing(sampler.generate(list(asked.requests.values()), frozenset(answers.keys))) as batches:
        for batch in _plausible(batches, source, first=not answers.keys):
            now = time.monotonic()
            share = {"engine": sampler.engine, "seconds": (now - before) / len(batch)}
            before = now
            lost |= {request.key: str(answer.error) for request, answer in batch if not answer.believed}
            kept = [(request, answer) for request, answer in batch if answer.believed]
            if kept:
                answers.append([_row(request, answer) | common | share for request, answer in kept])
            progress.add(len(batch), sum(answer.completion_tokens for _, answer in kept))
            if stop.is_set():
                raise KeyboardInterrupt
    return lost


def _row(request: Request, answer: Answer) -> dict[str, Any]:
    return {
        "key": request.key,
        "seed": request.seed,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "error": answer.error,
        "prompt_tokens": answer.prompt_tokens if request.messages else len(request.prompt),
        "completion_tokens": answer.completion_tokens,
        "max_new_tokens": request.max_tokens,
        **({} if answer.reasoning is None else {"reasoning": answer.reasoning}),
    }


def _sampler(config: PipelineConfig, source: SourceConfig, directory: Path | None, context: int) -> Sampler:
    if config.engine == "ray" and source.server is None and directory is not None:
        from data_pipeline.sampling.backends.ray_sampler import RaySampler

        return RaySampler(config, source, directory, context)
    return open_sampler(config, source, directory, context)


def _plausible(batches: Iterator[Answered], source: SourceConfig, first: bool) -> Iterator[Answered]:
    """The same batches; but refusals at the beginning are held back until there is an answer, and end the run if they
    are many, or all that the source ever gave: then its entry in the config is wrong, and they should not be kept as
    its answers. Malformed answers end it if they are many in a row, or all that there is.

    Args:
      batches: of the sampler.
      source: whose they are.
      first: whether nothing was kept of it before.
    """
    held: Answered = []
    answered, in_a_row = False, 0
    for batch in batches:
        for _, answer in batch:
            in_a_row = 0 if answer.believed else in_a_row + 1
        held += batch
        answered = answered or not all(answer.error for _, answer in batch)
        if answered:
            yield held
            held = []
        if in_a_row >= ALL_REFUSED:
            raise UserError(f"sources: {source.name}: {in_a_row} requests in a row failed: {batch[-1][1].error}")
        if len(held) >= ALL_REFUSED:
            raise UserError(f"sources: {source.name}: the first {len(held)} requests failed: {held[0][1].error}")
    if held and (first or not any(answer.believed for _, answer in held)):
        raise UserError(f"sources: {source.name}: all {len(held)} requests failed: {held[0][1].error}")
    if held:
        yield held


def _take_given(config: PipelineConfig, entry: GivenConfig, prompts: pl.DataFrame) -> None:
    output = epath.Path(config.output_dir)
    final = output / "samples" / f"{entry.name}.parquet"
    prompts = config.prompts_of(entry, prompts)
    chosen = prompts.select("id", "domain", "messages").rows()
    fingerprint = stage_files.fingerprint(given.fingerprint(entry), stage_files.fingerprint(*chosen), *_CODE)
    step = f"sample {entry.name}"

    def work() -> str:
        found, dropped = given.answers(entry, prompts)
        table = _finished(
            found.with_columns(
                source=pl.lit(entry.name),
                finish_reason=pl.lit("stop"),
                model=pl.lit(entry.model),
                revision=pl.lit(entry.revision),
                engine=pl.lit("given"),
            )
        )
        stage_files.write_parquet(table, final)
        answered = table["prompt_id"].n_unique()
        left_out = f"; {dropped.total():,} rows left out {dict(dropped)}" if dropped else ""
        return f"{len(table):,} given answers to {answered:,} of {len(prompts):,} prompts{left_out}{_cut(table)}"

    stage_files.once(output, step, fingerprint, [final], work)


def _table(
    source: SourceConfig, asked: SamplePlan, known: pl.DataFrame, lost: dict[str, str], opened: str
) -> pl.DataFrame:
    """The rows of the plan, in order, each with its answer."""
    rows = pl.DataFrame(asked.rows, schema=["key", "prompt_id", "sample_index"], orient="row")
    rows = rows.with_columns(pl.col("key").cast(pl.String), source=pl.lit(source.name))
    table = rows.join(known, on="key", how="left", maintain_order="left")
    reasons = [asked.rejected.get(prompt, lost.get(key)) for key, prompt in table.select("key", "prompt_id").rows()]
    table = table.with_columns(
        pl.col("finish_reason").fill_null("error"),
        pl.coalesce(pl.Series(reasons, dtype=pl.String), pl.col("error")).alias("error"),
        pl.col("text").fill_null(""),
        pl.col("completion_tokens").fill_null(0),
    )
    return _finished(table, opened)


def _finished(answers: pl.DataFrame, opened: str = "") -> pl.DataFrame:
    """The answers as a samples table: thoughts cut off, flaws marked, with the columns in their order."""
    table = flaws.mark(reasoning.cut(answers, opened))
    absent = [pl.lit(None, kind).alias(name) for name, kind in SCHEMA.items() if name not in table.columns]
    some = [name for name in SOMETIMES if name in table.columns and table[name].null_count() < len(table)]
    judged = [name for name in given_scores.SCHEMA if name in table.columns]
    # In one chunk, since the file's bytes depend on the chunks.
    return table.with_columns(absent).select(*SCHEMA, *some, *judged).cast(SCHEMA).rechunk()


def _earlier(final: epath.Path) -> pl.DataFrame:
    kept = [name for name in STORED if name != "seconds"]
    try:
        table = stage_files.read_parquet(final, kept, made_by="sample")
    except UserError as error:
        raise UserError(f"{error}; it is not of this stage: move it away to sample anew") from None
    # What a server never answered has a key, but nothing else.
    table = table.filter(pl.col("key").is_not_null() & pl.col("model").is_not_null()).unique("key", keep="first")
    some = [name for name in SOMETIMES if name in table.columns]
    return table.select(*kept, pl.lit(None, pl.Float64).alias("seconds"), *some)


def _summary(table: pl.DataFrame, new: int, rejected: dict[str, str], lost: int) -> str:
    finished = dict(table["finish_reason"].value_counts().sort("finish_reason").iter_rows())
    marked = {name: int(table[name].sum()) for name in flaws.FLAWS if table[name].any()}
    reasons = Counter(why.split(":")[0] for why in rejected.values())
    return (
        f"{len(table):,} answers, {new - lost:,} of them new; finished by {finished}"
        + (f"; flaws {marked}" if marked else "")
        + _cut(table)
        + (f"; {reasons.total():,} prompts rejected {dict(reasons)}" if reasons else "")
        + (f"; {lost:,} requests got only malformed answers: the same command asks again" if lost else "")
    )


def _cut(table: pl.DataFrame) -> str:
    if "reasoning" not in table.columns:
        return ""
    thoughts, alone = len(table) - table["reasoning"].null_count(), len(table.filter(reasoning.THOUGHT_ONLY))
    rest = f", {alone:,} of them with no answer after it" if alone else ""
    return f"; thoughts cut off from {thoughts:,}{rest}"
