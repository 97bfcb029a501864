"""Opens the backend that samples from a source."""

import importlib.util
from pathlib import Path

from data_pipeline.config import PipelineConfig, SourceConfig
from data_pipeline.sampling.sampler import Sampler
from fusejax.common.cli import UserError


def open_sampler(config: PipelineConfig, source: SourceConfig, directory: Path | None, context: int) -> Sampler:
    """Loads the source model, or finds its server.

    Args:
      config: the pipeline's.
      source: one of its sources.
      directory: where the checkpoint is; None behind a chat server.
      context: most tokens that a request's prompt and answer have together; 0 behind a chat server.

    Raises:
      UserError: it cannot be loaded, or its server does not serve it.
    """
    # Each is imported here, since it brings torch, vLLM, JAX or an HTTP client.
    backend = config.backend(source)
    if backend == "openai" or directory is None:
        from data_pipeline.sampling.backends.openai_sampler import OpenaiSampler

        return OpenaiSampler(source, context)
    if backend == "vllm":
        from data_pipeline.sampling.backends.vllm_sampler import VllmSampler

        return VllmSampler(source, directory, config.sampler.dtype, context)
    if backend == "jax":
        if importlib.util.find_spec("jax") is None:
            raise UserError(f"sources: {source.name}: the backend jax needs JAX, which is not installed here")
        from data_pipeline.sampling.backends.jax_sampler import JaxSampler

        return JaxSampler(config.sampler, source, directory)
    from data_pipeline.sampling.backends.transformers_sampler import TransformersSampler

    return TransformersSampler(config.sampler, source, directory)
