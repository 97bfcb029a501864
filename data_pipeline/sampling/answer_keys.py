"""Every answer that a source is to give, each under its key, as requests for a backend.

The key is the hash of the model's revision, the rendered prompt's token ids, the sampling parameters, the sample's
index and its seed. The seed is a hash of (run seed, source, rendered prompt, sample index), never a count. So prompts
that come or go change neither key nor seed of any other prompt's answers. Which software makes an answer is recorded
with it, but is no part of the key. Nor is a server's address, where a password may be.

Behind a chat server there are no token ids, and no revision: the messages take the place of the rendered prompt, the
model's name on the server that of the revision. Parameters that came later are part of the key only where they are set.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from data_pipeline import stage_files
from data_pipeline.config import LATER, PipelineConfig, SourceConfig
from data_pipeline.sampling import checkpoint
from data_pipeline.sampling.chat import ChatTokenizer, Refused
from data_pipeline.sampling.sampler import Request, Sampling
from fusejax.common import redact

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


def sampling_parameters(config: PipelineConfig, source: SourceConfig, directory: Path | None) -> dict[str, Any]:
    """The model, its revision and dtype, and the sampling parameters: the columns that all answers of a source share.

    Args:
      config: the pipeline's.
      source: one of its sources.
      directory: where the checkpoint is; None behind a chat server.
    """
    if directory is None:
        assert source.server is not None
        identity = {"revision": source.server.served_as or source.model, "dtype": None}
    else:
        served_as = source.server.served_as if source.server else None
        identity = {"revision": checkpoint.revision(directory, served_as), "dtype": config.sampler.dtype}
    sent = source.model_dump(include={"temperature", "top_p", "repetition_penalty"})
    left_out = source.server.extra_body.keys() if source.server else ()
    sent |= {name: None for name in sent if name in left_out}
    later = {name: value for name in LATER if (value := getattr(source, name))}
    return {"model": source.model, **identity, **sent, **later}


def default_sampling(source: SourceConfig) -> Sampling:
    """How a source's entry in the configuration says that its tokens are chosen."""
    return Sampling(**{each.name: getattr(source, each.name) for each in dataclasses.fields(Sampling)})


def kind_of(source: SourceConfig, common: dict[str, Any]) -> dict[str, Any]:
    """What the keys of all answers of a source have in common."""
    # Without the model's path, which may change; the revision identifies the model.
    kind = {name: value for name, value in common.items() if name != "model"}
    kind |= {name: source.engine[name] for name in MODEL_ARGUMENTS if name in source.engine}
    if source.server is not None and source.server.extra_body:
        kind["extra_body"] = redact.values(source.server.extra_body)
    if source.chat_server is not None:
        kind["mode"] = "chat"
        if source.chat_template_kwargs:  # Elsewhere, the rendered prompt shows them.
            kind["chat_template_kwargs"] = redact.values(source.chat_template_kwargs)
    return kind


def plan_samples(
    config: PipelineConfig,
    source: SourceConfig,
    prompts: pl.DataFrame,
    tokenizer: ChatTokenizer | None,
    common: dict[str, Any],
) -> SamplePlan:
    """Renders the prompts and gives each answer its key.

    Args:
      config: the pipeline's.
      source: one of its sources.
      prompts: those of its domains.
      tokenizer: the source's; None behind a chat server, which renders messages itself.
      common: its `sampling_parameters`.
    """
    plan = SamplePlan([], {}, {})
    kind, sampling = kind_of(source, common), default_sampling(source)
    for prompt in prompts.iter_rows(named=True):
        count = config.domains[prompt["domain"]].samples
        shared: tuple[int, ...] = ()
        messages: tuple[dict[str, str], ...] = ()
        limit = config.max_new_tokens
        if tokenizer is None:
            messages = tuple({"role": turn["role"], "content": turn["content"]} for turn in prompt["messages"])
            rendered = stage_files.fingerprint(messages)
        else:
            try:
                shared = tuple(tokenizer.encode(prompt["messages"]))
            except Refused as error:
                plan.rejected[prompt["id"]] = str(error)
                plan.rows.extend((None, prompt["id"], index) for index in range(count))
                continue
            limit = min(limit, tokenizer.context - len(shared))
            rendered = stage_files.fingerprint(shared)
        for index in range(count):
            seed = stage_files.stable_hash(config.seed, "sample", source.name, rendered, str(index))
            key = stage_files.fingerprint(kind, rendered, limit, index, seed)
            plan.rows.append((key, prompt["id"], index))
            plan.requests[key] = Request(key, shared, seed, limit, sampling, messages)
    return plan
