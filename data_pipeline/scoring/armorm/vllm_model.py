"""ArmoRM as a pooling model of vLLM: `encode(..., pooling_task="token_classify")` gives the score and the objectives.

The gate reads a hidden state within the prompt, which is not computed again for a prefix in the cache. For the task
`token_classify` vLLM does not read the prefix cache, so the result is right with prefix caching on and off; the chunks
of a prompt that was prefilled in chunks are put together.
"""

from collections.abc import Iterable, Set

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoTokenizer
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.layers.pooler import Pooler, PoolingParamsUpdate
from vllm.model_executor.layers.pooler.tokwise.methods import AllPool
from vllm.model_executor.models.llama import LlamaModel
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix
from vllm.sequence import IntermediateTensors
from vllm.tasks import PoolingTask
from vllm.v1.pool.metadata import PoolingMetadata

from data_pipeline.scoring.armorm.conversation import gating_pattern, last_occurrence
from data_pipeline.scoring.armorm.heads import Heads


class ArmoRM(nn.Module):
    is_pooling_model = True
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            name: f"pooler.heads.{name}" for name in ("regression_layer", "gating", "reward_transform_matrix")
        }
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        self.model = LlamaModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.pooler = GatedPooler(vllm_config.model_config)
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor | IntermediateTensors:
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Raises `ValueError` where a weight is not of this model, or one of the model's is not there."""
        loaded = AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
        missing = sorted({name for name, _ in self.named_parameters()} - loaded)
        if missing:
            raise ValueError(f"ArmoRM: no weight for {', '.join(missing)}")
        return loaded


class GatedPooler(Pooler):
    """Hidden states of whole prompts -> the score and the objectives; NaN for a prompt without the gating pattern."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        tokenizer = AutoTokenizer.from_pretrained(config.tokenizer, revision=config.tokenizer_revision)
        self._pattern = gating_pattern(tokenizer)
        self._all = AllPool()
        self.heads = Heads(config.hf_config)

    def get_supported_tasks(self) -> Set[PoolingTask]:
        return {"token_classify"}

    def get_pooling_updates(self, task: PoolingTask) -> PoolingParamsUpdate:
        return PoolingParamsUpdate(requires_token_ids=True)

    def forward(
        self, hidden_states: Float[Tensor, "L D"], pooling_metadata: PoolingMetadata
    ) -> list[Float[Tensor, "R"] | None]:
        """One row per prompt; None for a prompt of which a chunk is still to come.

        Raises:
          RuntimeError: hidden states are missing, for example because a caller made vLLM read the prefix cache.
        """
        prompts = pooling_metadata.get_prompt_token_ids_cpu()
        states = self._all(hidden_states, pooling_metadata)
        rows: list[Tensor | None] = [None] * len(prompts)
        last, gates, whole = [], [], []
        for index, (tokens, hidden) in enumerate(zip(prompts, states, strict=True)):
            if hidden is None:
                continue
            if len(hidden) != len(tokens):
                raise RuntimeError(
                    f"ArmoRM needs all {len(tokens)} hidden states of a prompt, and {len(tokens) - len(hidden)} were "
                    "not computed: leave skip_reading_prefix_cache unset"
                )
            gate = last_occurrence(tokens.tolist(), self._pattern)
            if gate is None:
                objectives = len(self.heads.reward_transform_matrix)
                rows[index] = torch.full((1 + objectives,), torch.nan, device=hidden.device)
                continue
            last.append(hidden[-1])
            gates.append(hidden[gate])
            whole.append(index)
        if whole:
            for index, row in zip(whole, self.heads(torch.stack(last), torch.stack(gates)), strict=True):
                rows[index] = row
        return rows
