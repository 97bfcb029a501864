"""Stage `sample`: every source answers every prompt of its domains, to `samples/{source}.parquet`.

Answers are stored under a key: the hash of model, sampling parameters, conversation and seed. Chunk by chunk they go to
part files in `samples/.answers/{source}/`, which only ever gets more: a run asks for the keys that are not there yet,
so a killed run goes on where it was, nothing is asked twice, and answers that are not wanted now wait there. The seed
is a hash of (run seed, prompt, source, sample index), never a count.
"""

from typing import Any

import polars as pl
from etils import epath
from tqdm import tqdm

from data_pipeline import store
from data_pipeline.config import PipelineConfig, SourceConfig
from data_pipeline.prompts import SCHEMA as PROMPTS_SCHEMA
from data_pipeline.samplers import checkpoint
from data_pipeline.samplers.base import Request, Sampler, open_sampler
from fusejax.cli import UserError

SCHEMA = pl.Schema(
    {
        "key": pl.String,
        "prompt_id": pl.String,
        "source": pl.String,
        "sample_index": pl.Int64,
        "seed": pl.Int64,
        "text": pl.String,
        "finish_reason": pl.String,
        "error": pl.String,
        "prompt_tokens": pl.Int64,
        "completion_tokens": pl.Int64,
        "model": pl.String,
        "model_fingerprint": pl.String,
        "temperature": pl.Float64,
        "top_p": pl.Float64,
        "repetition_penalty": pl.Float64,
        "max_new_tokens": pl.Int64,
        "engine": pl.String,
    }
)


def run(config: PipelineConfig) -> None:
    """Writes `samples/{source}.parquet` for each source.

    Raises:
      UserError: no prompts, a source that cannot be loaded, or a samples file of another maker in the way.
    """
    output = epath.Path(config.output_dir)
    prompts = store.read_parquet(output / "prompts.parquet", list(PROMPTS_SCHEMA), made_by="prompts")
    # Sampling takes long: a source that cannot be found should be known before the first one is asked.
    directories = {source.name: checkpoint.locate(source.model) for source in config.sources}
    for source in config.sources:
        _sample_source(config, source, prompts, checkpoint.fingerprint(directories[source.name]))


def _sample_source(config: PipelineConfig, source: SourceConfig, prompts: pl.DataFrame, model: str) -> None:
    final = epath.Path(config.output_dir) / "samples" / f"{source.name}.parquet"
    parts = final.parent / ".answers" / source.name
    wanted = _requests(config, source, prompts, model)
    if not wanted:
        raise UserError(f"sources: {source.name}: no prompt in its domains {', '.join(source.domains)}")
    step = f"sample {source.name}"
    stored = _stored(final)
    if stored is not None and stored["key"].to_list() == list(wanted):
        print(f"{step}: up to date: {len(wanted):,} answers", flush=True)
        return
    keys = list(wanted)
    is_wanted = pl.col("key").is_in(keys)
    frames = [pl.DataFrame(schema=SCHEMA)]
    kept: set[str] = set()
    for part in sorted(parts.glob("*.parquet")):
        frame = _read(part)
        kept.update(frame["key"])
        frames.append(frame.filter(is_wanted))
    if stored is not None and not kept.issuperset(stored["key"]):
        # Of a directory that came without its part files.
        store.write_parquet(stored, parts / f"{store.fingerprint(stored['key'].to_list())[:32]}.parquet")
        frames.append(stored.filter(is_wanted))
    present = set().union(*(frame["key"] for frame in frames))
    sampler: Sampler | None = None
    progress = tqdm(total=len(keys), initial=len(present), desc=step, unit="answer", disable=None)
    for start in range(0, len(keys), config.sampler.chunk_size):
        # Chunks are cut from all keys, not from the missing ones, so that resuming changes no batch.
        chunk = [key for key in keys[start : start + config.sampler.chunk_size] if key not in present]
        if not chunk:
            continue
        if sampler is None:
            sampler = open_sampler(config.sampler, source, config.max_new_tokens)
        answers = sampler.generate([wanted[key][1] for key in chunk])
        rows = [
            {"key": key, **wanted[key][0], **vars(answer), "engine": sampler.engine}
            for key, answer in zip(chunk, answers, strict=True)
        ]
        frame = pl.DataFrame(rows, schema=SCHEMA)
        store.write_parquet(frame, parts / f"{store.fingerprint(chunk)[:32]}.parquet")
        frames.append(frame)
        progress.update(len(chunk))
    progress.close()
    known = pl.concat(frames)
    order = pl.DataFrame({"key": keys})
    result = order.join(known.unique("key", keep="first"), on="key", how="left", maintain_order="left")
    store.write_parquet(result.select(SCHEMA.names()), final)
    finished = dict(result["finish_reason"].value_counts().sort("finish_reason").iter_rows())
    print(
        f"{step}: {len(keys):,} answers, {len(keys) - len(present):,} of them new; finished by {finished}", flush=True
    )


def _requests(
    config: PipelineConfig, source: SourceConfig, prompts: pl.DataFrame, model: str
) -> dict[str, tuple[dict[str, Any], Request]]:
    """Key -> (the row's columns known beforehand, the request), ordered by prompt and sample index."""
    sampling = {
        **source.model_dump(include={"temperature", "top_p", "repetition_penalty"}),
        "max_new_tokens": config.max_new_tokens,
    }
    requests: dict[str, tuple[dict[str, Any], Request]] = {}
    for prompt in prompts.filter(pl.col("domain").is_in(source.domains)).iter_rows(named=True):
        content = store.fingerprint(model, sampling, config.sampler.dtype, prompt["messages"])
        for index in range(getattr(config.samples_per_prompt, prompt["domain"])):
            seed = store.rank(config.seed, "sample", prompt["id"], source.name, str(index))
            row = {
                "prompt_id": prompt["id"],
                "source": source.name,
                "sample_index": index,
                "seed": seed,
                "model": source.model,
                "model_fingerprint": model,
                **sampling,
            }
            requests[store.fingerprint(content, seed)] = row, Request(prompt["messages"], seed)
    return requests


def _stored(path: epath.Path) -> pl.DataFrame | None:
    """Answers of an earlier run; None where there are none."""
    return _read(path) if path.exists() else None


def _read(path: epath.Path) -> pl.DataFrame:
    try:
        return store.read_parquet(path, SCHEMA.names(), made_by="sample").select(SCHEMA.names())
    except UserError as error:
        raise UserError(f"{error}; it is not of this stage: move it away to sample anew") from None
