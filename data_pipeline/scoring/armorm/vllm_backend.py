"""ArmoRM in vLLM, in this process's environment."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vllm

from data_pipeline.domains import RewardModelConfig
from data_pipeline.scoring.armorm.backend import Conversation, Rewards
from fusejax.common.cli import UserError, one_line

MAX_SEQUENCES = 256
"""Most conversations per step."""


class VllmBackend:
    """Raises `UserError` where vLLM does not load the model, or one of the config's engine arguments is wrong."""

    def __init__(self, directory: Path, config: RewardModelConfig):
        # vLLM wants no more sequences in a batch than tokens.
        arguments: dict[str, Any] = {"max_num_seqs": min(MAX_SEQUENCES, config.batch_tokens)} | config.engine
        try:
            self._engine = vllm.LLM(
                model=str(directory),
                runner="pooling",
                dtype=config.dtype,
                # A conversation longer than a batch goes through in chunks.
                enable_chunked_prefill=True,
                max_num_batched_tokens=config.batch_tokens,
                # No prefix is read from the cache (see `vllm_model`), so caching prefixes would be useless.
                enable_prefix_caching=False,
                **arguments,
            )
        except Exception as error:  # Whatever a broken checkpoint or a full GPU makes vLLM raise.
            raise UserError(f"reward model {directory}: vLLM cannot load it: {one_line(error)}") from error

    def rewards(self, conversations: Sequence[Conversation]) -> list[Rewards]:
        """One per conversation, in order."""
        prompts = [vllm.TokensPrompt(prompt_token_ids=conversation.tokens) for conversation in conversations]
        outputs = self._engine.encode(prompts, pooling_task="token_classify", use_tqdm=False)
        return [Rewards.of(output.outputs.data.tolist()) for output in outputs]
