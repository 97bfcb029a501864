"""A sequence classifier in vLLM, in this process's environment."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vllm

from data_pipeline.domains import RewardModelConfig
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
                # Whatever sentence-transformers' files beside the checkpoint say.
                pooler_config=vllm.config.PoolerConfig(pooling_type="LAST"),
                # vLLM's default for pooling models, said here because rewards depend on it.
                hf_overrides={"head_dtype": "float32"},
                # A conversation longer than a batch goes through in chunks.
                enable_chunked_prefill=True,
                max_num_batched_tokens=config.batch_tokens,
                # Answers to one prompt share its tokens.
                enable_prefix_caching=True,
                **arguments,
            )
        except Exception as error:  # Whatever a broken checkpoint or a full GPU makes vLLM raise.
            raise UserError(f"reward model {directory}: vLLM cannot load it: {one_line(error)}") from error

    def rewards(self, conversations: Sequence[list[int]]) -> list[float]:
        """One per conversation, in order."""
        prompts = [vllm.TokensPrompt(prompt_token_ids=tokens) for tokens in conversations]
        # The logit itself, not its sigmoid.
        params = vllm.PoolingParams(use_activation=False)
        outputs = self._engine.encode(prompts, params, pooling_task="classify", use_tqdm=False)
        return [float(output.outputs.data[0]) for output in outputs]
