"""ArmoRM in vLLM, in this process's environment."""

from collections.abc import Sequence
from pathlib import Path

import vllm

from data_pipeline.domains import RewardModelConfig
from data_pipeline.scoring import vllm_engine
from data_pipeline.scoring.armorm.backend import Conversation, Rewards


class VllmBackend:
    """Raises what `vllm_engine.load` does."""

    def __init__(self, directory: Path, config: RewardModelConfig):
        # No prefix is read from the cache (see `vllm_model`), so caching prefixes would be useless.
        self._engine = vllm_engine.load(directory, config, enable_prefix_caching=False)

    def rewards(self, conversations: Sequence[Conversation]) -> list[Rewards]:
        """One per conversation, in order."""
        prompts = [vllm.TokensPrompt(prompt_token_ids=conversation.tokens) for conversation in conversations]
        outputs = self._engine.encode(prompts, pooling_task="token_classify", use_tqdm=False)
        return [Rewards.of(output.outputs.data.tolist()) for output in outputs]
