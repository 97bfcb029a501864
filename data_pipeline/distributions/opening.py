"""Opens the backend that runs a source model."""

import importlib.util
from pathlib import Path

from data_pipeline.config import DistributionsConfig, PipelineConfig, SourceConfig
from data_pipeline.distributions.backend import Backend
from fusejax.common.cli import UserError


def name_of(config: PipelineConfig, section: DistributionsConfig, source: SourceConfig) -> str:
    """The backend that runs the source: transformers or vllm.

    Raises:
      UserError: the source is sampled by what gives no distributions, and the config names no other.
    """
    sampled_by = config.backend(source)
    if source.chat_server is not None:
        raise UserError(f"distributions: the source {source.name} is behind a chat server, without a checkpoint")
    if section.backend is None and sampled_by == "openai":
        raise UserError(f"distributions.backend: the source {source.name} is behind a server; name one to run it here")
    if section.backend is None and sampled_by == "jax":
        raise UserError(f"distributions.backend: jax, which samples {source.name}, gives none; name another")
    return section.backend or sampled_by


def open_backend(
    name: str,
    config: PipelineConfig,
    section: DistributionsConfig,
    source: SourceConfig,
    directory: Path,
    context: int,
    top_k: int,
) -> Backend:
    """Loads the source model.

    Args:
      name: of the backend.
      config: the pipeline's.
      section: its section.
      source: one of its sources.
      directory: where the checkpoint is.
      context: most tokens of a conversation, and one more.
      top_k: K, at most the size of the vocabulary.

    Raises:
      UserError: it cannot be loaded, or vLLM is not installed.
    """
    # Each is imported here, since it brings torch or vLLM.
    if name == "vllm":
        if importlib.util.find_spec("vllm") is None:
            raise UserError("distributions.backend: vllm is not installed here; install it, or take transformers")
        from data_pipeline.distributions.vllm_backend import VllmBackend

        arguments = source.engine | section.engine
        return VllmBackend(source.name, directory, config.sampler.dtype, context, top_k, arguments)
    from data_pipeline.distributions.transformers_backend import TransformersBackend

    return TransformersBackend(source.name, directory, config.sampler.dtype, top_k)
