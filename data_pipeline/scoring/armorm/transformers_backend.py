"""ArmoRM on transformers' Llama, on CPU or one GPU: whole conversations in batches, padded on the right."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_pipeline.domains import RewardModelConfig
from data_pipeline.scoring.armorm.backend import Conversation, Rewards
from data_pipeline.scoring.armorm.heads import Heads
from fusejax.common.cli import UserError, one_line


class TransformersBackend:
    """Raises `UserError` where the directory holds no whole ArmoRM."""

    def __init__(self, directory: Path, config: RewardModelConfig):
        self._batch_tokens = config.batch_tokens
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._backbone = _backbone(directory, getattr(torch, config.dtype)).to(device).eval()
        self._heads = _heads(directory, self._backbone.config).to(device).eval()

    def rewards(self, conversations: Sequence[Conversation]) -> list[Rewards]:
        """One per conversation, in order."""
        found: dict[int, Rewards] = {}
        for batch in batches([len(conversation.tokens) for conversation in conversations], self._batch_tokens):
            rows = self._batch([conversations[index] for index in batch]).tolist()
            found.update((index, Rewards.of(row)) for index, row in zip(batch, rows, strict=True))
        return [found[index] for index in range(len(conversations))]

    @torch.inference_mode()
    def _batch(self, conversations: Sequence[Conversation]) -> Float[Tensor, "B R"]:
        device = self._backbone.device
        lengths = torch.tensor([len(conversation.tokens) for conversation in conversations], device=device)
        longest = int(lengths.max())
        # Masked out and never looked at, so any id will do for padding.
        inputs = torch.tensor([c.tokens + [0] * (longest - len(c.tokens)) for c in conversations], device=device)
        mask = (torch.arange(longest, device=device) < lengths[:, None]).long()
        hidden = self._backbone(input_ids=inputs, attention_mask=mask, use_cache=False).last_hidden_state
        gates = torch.tensor([conversation.gate for conversation in conversations], device=device)
        rows = torch.arange(len(conversations), device=device)
        return self._heads(hidden[rows, lengths - 1], hidden[rows, gates])


def batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices in batches of similar length, none with over `batch_tokens` tokens, padding included.

    A single conversation that is longer is a batch of its own. The longest come first: what does not fit into memory
    fails at once.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= batch_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _backbone(directory: Path, dtype: torch.dtype) -> Any:
    transformers.utils.logging.disable_progress_bar()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # It would warn that it does not use the heads' weights.
    try:
        found: Any = transformers.LlamaModel.from_pretrained(directory, dtype=dtype, output_loading_info=True)
    except Exception as error:  # Whatever a broken checkpoint makes transformers or safetensors raise.
        raise UserError(f"reward model {directory} cannot be loaded: {one_line(error)}") from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    model, loaded = found
    # Weights that it does not find, transformers fills with random numbers.
    for name in sorted(loaded["missing_keys"]):
        raise UserError(f"reward model {directory}: no weight 'model.{name}'")
    return model


def _heads(directory: Path, config: transformers.PretrainedConfig) -> Heads:
    heads = Heads(config)
    weights: dict[str, Tensor] = {}
    try:
        for path in sorted(directory.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                names = heads.state_dict().keys() & set(file.keys())
                weights.update((name, file.get_tensor(name).float()) for name in names)
        heads.load_state_dict(weights)
    except (SafetensorError, OSError, RuntimeError) as error:  # RuntimeError: a weight is missing, or of another shape.
        raise UserError(f"reward model {directory}: its heads cannot be loaded: {one_line(error)}") from error
    return heads
