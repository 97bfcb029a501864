"""Stage `sample`: every source answers every prompt of its domains; the answers go to `samples/{source}.parquet`.

Answers are kept for good in `samples/.answers/{source}/`, each under its key (see `answer_keys`). A run asks only for
the keys that are not there yet: a killed run goes on where it was, nothing is sampled twice, and answers that this
config does not use stay there for another.

A request that is lost on the way to a server is sent again. One that the server or the engine refuses, such as a prompt
that it finds too long, counts as answered, and its error is kept in place of a text. A prompt that the source's chat
template or context does not admit is not sent at all: it is in `rejected/sample-{source}.jsonl` with the reason, and
its rows in the table have the finish reason "error". Flaws are looked for in the table, after sampling: changing how
they are found samples nothing again.
"""

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
from data_pipeline.sampling import answer_keys, checkpoint, flaws, given, given_scores
from data_pipeline.sampling.answer_keys import SamplePlan
from data_pipeline.sampling.answer_store import AnswerStore
from data_pipeline.sampling.backends.opening import open_sampler
from data_pipeline.sampling.chat import ChatTokenizer
from data_pipeline.sampling.progress import Progress
from data_pipeline.sampling.sampler import Answered, Sampler
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
STORED = pl.Schema({"key": pl.String, **_ANSWER, "seconds": pl.Float64})
"""Columns of the answer store. `seconds` is the answer's share of the time since the batch before: summed over all
answers, the time that sampling took."""
SCHEMA = pl.Schema({**_ROW, **_ANSWER, **dict.fromkeys(flaws.FLAWS, pl.Boolean)})
"""Columns of `samples/{source}.parquet`, and those of `given_scores` where given answers have some. Not
`seconds`, which differs from run to run: the table depends only on what was asked."""
ALL_REFUSED = 20
"""Refused requests, without any answer, after which the run ends: the source's entry in the config must be wrong."""


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
            _sample_source(config, source, prompts, directories[source.name], stop)
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
    """Where each source's checkpoint is on disk: checked before sampling, which takes long, begins.

    Raises:
      UserError: one is not found.
    """
    return {
        source.name: checkpoint.locate(source.model, source.revision, weights=source.server is None)
        for source in config.sources
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
    config: PipelineConfig, source: SourceConfig, prompts: pl.DataFrame, directory: Path, stop: threading.Event
) -> None:
    output = epath.Path(config.output_dir)
    final, rejected = output / "samples" / f"{source.name}.parquet", output / "rejected" / f"sample-{source.name}.jsonl"
    prompts = answer_keys.prompts_of(source, prompts)
    if prompts.is_empty():
        raise UserError(f"sources: {source.name}: no prompt in its domains {', '.join(source.domains)}")
    common = answer_keys.sampling_parameters(config, source, directory)
    counts = {domain: config.domains[domain].samples for domain in source.domains}
    settings = [common, counts, config.max_new_tokens, source.max_model_len, source.engine]
    chosen = prompts.select("id", "domain", "messages").rows()
    inputs = stage_files.fingerprint(
        source.name, config.seed, settings, stage_files.fingerprint(*chosen), Path(flaws.__file__)
    )
    step = f"sample {source.name}"

    def work() -> str:
        tokenizer = ChatTokenizer(source.name, directory, source.max_model_len)
        note(f"{step}: rendering {len(prompts):,} prompts")
        asked = answer_keys.plan_samples(config, source, prompts, tokenizer, common)
        with AnswerStore(store_folder(config, source), STORED) as answers:
            if final.exists():
                # The table in a directory that was copied without its part files.
                answers.adopt(_earlier(final))
            missing = len(asked.requests.keys() - answers.keys)
            if missing:
                total = len(asked.requests)
                note(f"{step}: {missing:,} of {total:,} answers to make")
                sampler = _sampler(config, source, directory, tokenizer.context)
                try:
                    ask(sampler, source, asked, common, answers, Progress(step, total - missing, total), stop)
                finally:
                    sampler.close()
            known = answers.table()
        table = _table(source, asked, known)
        lines = [
            {"where": prompt, "reason": reason.split(":")[0], "detail": reason}
            for prompt, reason in asked.rejected.items()
        ]
        write_text(rejected, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        stage_files.write_parquet(table, final)
        return _summary(table, missing, Counter(line["reason"] for line in lines))

    stage_files.once(output, step, inputs, [final, rejected], work)


def ask(
    sampler: Sampler,
    source: SourceConfig,
    asked: SamplePlan,
    common: dict[str, Any],
    answers: AnswerStore,
    progress: Progress,
    stop: threading.Event,
) -> None:
    """Asks for what the store does not hold, and keeps each answer the moment it is there.

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
    for batch in _plausible(sampler.generate(list(asked.requests.values()), frozenset(answers.keys)), source):
        now = time.monotonic()
        share = {"engine": sampler.engine, "seconds": (now - before) / len(batch)}
        before = now
        answers.append(
            [
                {
                    "key": request.key,
                    "seed": request.seed,
                    "prompt_tokens": len(request.prompt),
                    "max_new_tokens": request.max_tokens,
                    **common,
                    **vars(answer),
                    **share,
                }
                for request, answer in batch
            ]
        )
        progress.add(len(batch), sum(answer.completion_tokens for _, answer in batch))
        if stop.is_set():
            raise KeyboardInterrupt


def _sampler(config: PipelineConfig, source: SourceConfig, directory: Path, context: int) -> Sampler:
    if config.engine == "ray" and source.server is None:
        from data_pipeline.sampling.backends.ray_sampler import RaySampler

        return RaySampler(config, source, directory, context)
    return open_sampler(config, source, directory, context)


def _plausible(batches: Iterator[Answered], source: SourceConfig) -> Iterator[Answered]:
    """The same batches; but refusals at the beginning are held back until there is an answer, and end the run if they
    are many: then the source's entry in the config is wrong, and they should not be kept as its answers."""
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


def _take_given(config: PipelineConfig, entry: GivenConfig, prompts: pl.DataFrame) -> None:
    output = epath.Path(config.output_dir)
    final = output / "samples" / f"{entry.name}.parquet"
    prompts = answer_keys.prompts_of(entry, prompts)
    chosen = prompts.select("id", "domain", "messages").rows()
    fingerprint = stage_files.fingerprint(
        given.fingerprint(entry), stage_files.fingerprint(*chosen), Path(flaws.__file__)
    )
    step = f"sample {entry.name}"

    def work() -> str:
        found, dropped = given.answers(entry, prompts)
        table = flaws.mark(
            found.with_columns(
                source=pl.lit(entry.name),
                finish_reason=pl.lit("stop"),
                model=pl.lit(entry.model),
                revision=pl.lit(entry.revision),
                engine=pl.lit("given"),
            )
        )
        absent = [pl.lit(None, kind).alias(name) for name, kind in SCHEMA.items() if name not in table.columns]
        judged = [name for name in given_scores.SCHEMA if name in table.columns]
        table = table.with_columns(absent).select(*SCHEMA, *judged).cast(SCHEMA).rechunk()
        stage_files.write_parquet(table, final)
        answered = table["prompt_id"].n_unique()
        left_out = f"; {dropped.total():,} rows left out {dict(dropped)}" if dropped else ""
        return f"{len(table):,} given answers to {answered:,} of {len(prompts):,} prompts{left_out}"

    stage_files.once(output, step, fingerprint, [final], work)


def _table(source: SourceConfig, asked: SamplePlan, known: pl.DataFrame) -> pl.DataFrame:
    """The rows of the plan, in order, each with its answer."""
    rows = pl.DataFrame(asked.rows, schema=["key", "prompt_id", "sample_index"], orient="row")
    rows = rows.with_columns(pl.col("key").cast(pl.String), source=pl.lit(source.name))
    table = rows.join(known, on="key", how="left", maintain_order="left")
    reasons = [asked.rejected.get(prompt) for prompt in table["prompt_id"]]
    table = table.with_columns(
        pl.when(pl.col("key").is_null())
        .then(pl.lit("error"))
        .otherwise(pl.col("finish_reason"))
        .alias("finish_reason"),
        pl.coalesce(pl.Series(reasons, dtype=pl.String), pl.col("error")).alias("error"),
        pl.col("text").fill_null(""),
        pl.col("completion_tokens").fill_null(0),
    )
    # In one chunk, since the file's bytes depend on the chunks.
    return flaws.mark(table).select(SCHEMA.names()).cast(SCHEMA).rechunk()


def _earlier(final: epath.Path) -> pl.DataFrame:
    kept = [name for name in STORED if name != "seconds"]
    try:
        table = stage_files.read_parquet(final, kept, made_by="sample")
    except UserError as error:
        raise UserError(f"{error}; it is not of this stage: move it away to sample anew") from None
    table = table.filter(pl.col("key").is_not_null()).unique("key", keep="first")
    return table.select(*kept, pl.lit(None, pl.Float64).alias("seconds"))


def _summary(table: pl.DataFrame, new: int, rejected: Counter[str]) -> str:
    finished = dict(table["finish_reason"].value_counts().sort("finish_reason").iter_rows())
    marked = {name: int(table[name].sum()) for name in flaws.FLAWS if table[name].any()}
    return (
        f"{len(table):,} answers, {new:,} of them new; finished by {finished}"
        + (f"; flaws {marked}" if marked else "")
        + (f"; {rejected.total():,} prompts rejected {dict(rejected)}" if rejected else "")
    )
