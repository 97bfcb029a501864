"""Every answer that a source is to give, each under its key, as requests for a backend.

The key is the hash of the model's revision, the rendered prompt's token ids, the sampling parameters, the sample's
index and its seed. The seed is a hash of (run seed, source, rendered prompt, sample index), never a count. So prompts
that come or go change neither key nor seed of any other prompt's answers. Which software makes an answer is recorded
with it, but is no part of the key.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from data_pipeline import stage_files
from data_pipeline.config import GivenConfig, PipelineConfig, SourceConfig
from data_pipeline.sampling import checkpoint
from data_pipeline.sampling.chat import ChatTokenizer, Refused
from data_pipeline.sampling.sampler import Request

MODEL_ARGUMENTS = (
    "quantization", "kv_cache_dtype", "hf_overrides", "generation_config", "override_generation_config",
    "logits_processors",
)  # fmt: skip
"""Arguments of vLLM's engine that change which answer a model gives, and so are part of the key. All others change only
the speed."""


@dataclass(frozen=True)
class SamplePlan:
    """What a source's table is to contain: its rows, and the requests that produce them."""

    rows: list[tuple[str | None, str, int]]
    """(key, prompt, sample index), ordered by prompt and index; no key where the prompt was rejected."""
    requests: dict[str, Request]
    rejected: dict[str, str]
    """Prompt -> `reason: detail`."""


def prompts_of(source: SourceConfig | GivenConfig, prompts: pl.DataFrame) -> pl.DataFrame:
    """The prompts of the source's domains."""
    return prompts.filter(pl.col("domain").is_in(source.domains))


def sampling_parameters(config: PipelineConfig, source: SourceConfig, directory: Path) -> dict[str, Any]:
    """The model, its revision and dtype, and the sampling parameters: the columns that all answers of a source share.

    Args:
      config: the pipeline's.
      source: one of its sources.
      directory: where the checkpoint is.
    """
    return {
        "model": source.model,
        "revision": checkpoint.revision(directory, source.server.served_as if source.server else None),
        "dtype": config.sampler.dtype,
        **source.model_dump(include={"temperature", "top_p", "repetition_penalty"}),
    }


def plan_samples(
    config: PipelineConfig,
    source: SourceConfig,
    prompts: pl.DataFrame,
    tokenizer: ChatTokenizer,
    common: dict[str, Any],
) -> SamplePlan:
    """Renders the prompts and gives each answer its key.

    Args:
      config: the pipeline's.
      source: one of its sources.
      prompts: those of its domains.
      tokenizer: the source's.
      common: its `sampling_parameters`.
    """
    plan = SamplePlan([], {}, {})
    # Without the model's path, which may change; the revision identifies the model.
    kind = {name: value for name, value in common.items() if name != "model"}
    kind |= {name: source.engine[name] for name in MODEL_ARGUMENTS if name in source.engine}
    for prompt in prompts.iter_rows(named=True):
        count = config.domains[prompt["domain"]].samples
        try:
            ids = tokenizer.encode(prompt["messages"])
        except Refused as error:
            plan.rejected[prompt["id"]] = str(error)
            plan.rows.extend((None, prompt["id"], index) for index in range(count))
            continue
        limit = min(config.max_new_tokens, tokenizer.context - len(ids))
        rendered, shared = stage_files.fingerprint(ids), tuple(ids)
        for index in range(count):
            seed = stage_files.stable_hash(config.seed, "sample", source.name, rendered, str(index))
            key = stage_files.fingerprint(kind, rendered, limit, index, seed)
            plan.rows.append((key, prompt["id"], index))
            plan.requests[key] = Request(key, shared, seed, limit)
    return plan
