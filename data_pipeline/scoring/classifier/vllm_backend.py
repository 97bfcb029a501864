"""A sequence classifier in vLLM, in this process's environment."""

from collections.abc import Sequence
from pathlib import Path

import vllm

from data_pipeline.domains import RewardModelConfig
from data_pipeline.scoring import vllm_engine


class VllmBackend:
    """Raises what `vllm_engine.load` does."""

    def __init__(self, directory: Path, config: RewardModelConfig):
        self._engine = vllm_engine.load(
            directory,
            config,
            # Whatever sentence-transformers' files beside the checkpoint say.
            pooler_config=vllm.config.PoolerConfig(pooling_type="LAST"),
            # vLLM's default for pooling models, said here because rewards depend on it.
            hf_overrides={"head_dtype": "float32"},
            # Answers to one prompt share its tokens.
            enable_prefix_caching=True,
        )

    def rewards(self, conversations: Sequence[list[int]]) -> list[float]:
        """One per conversation, in order."""
        prompts = [vllm.TokensPrompt(prompt_token_ids=tokens) for tokens in conversations]
        # The logit itself, not its sigmoid.
        params = vllm.PoolingParams(use_activation=False)
        outputs = self._engine.encode(prompts, params, pooling_task="classify", use_tqdm=False)
        return [float(output.outputs.data[0]) for output in outputs]
