"""A sequence classifier on transformers, on CPU or one GPU: whole conversations in batches, padded on the right."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from data_pipeline.domains import RewardModelConfig
from data_pipeline.scoring.armorm.transformers_backend import batches
from data_pipeline.scoring.classifier import HEAD
from fusejax.common.cli import UserError, one_line


class TransformersBackend:
    """Raises `UserError` where the directory holds no whole model."""

    def __init__(self, directory: Path, config: RewardModelConfig):
        self._batch_tokens = config.batch_tokens
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._decoder = _decoder(directory, getattr(torch, config.dtype)).to(device).eval()
        self._head = _head(directory).to(device)

    def rewards(self, conversations: Sequence[list[int]]) -> list[float]:
        """One per conversation, in order."""
        found: dict[int, float] = {}
        for batch in batches([len(tokens) for tokens in conversations], self._batch_tokens):
            found.update(zip(batch, self._batch([conversations[index] for index in batch]).tolist(), strict=True))
        return [found[index] for index in range(len(conversations))]

    @torch.inference_mode()
    def _batch(self, conversations: Sequence[list[int]]) -> Float[Tensor, " B"]:
        device = self._decoder.device
        lengths = torch.tensor([len(tokens) for tokens in conversations], device=device)
        longest = int(lengths.max())
        # Masked out and never looked at, so any id will do for padding.
        inputs = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in conversations], device=device)
        mask = (torch.arange(longest, device=device) < lengths[:, None]).long()
        hidden = self._decoder(input_ids=inputs, attention_mask=mask, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(conversations), device=device), lengths - 1]
        return last.float() @ self._head


def _decoder(directory: Path, dtype: torch.dtype) -> Any:
    transformers.utils.logging.disable_progress_bar()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # It would warn that it does not use the head's weight.
    try:
        config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False)
        # Fused attention leaves the soft cap of Gemma-2's scores out, in some versions of transformers in silence.
        capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
        found: Any = transformers.AutoModel.from_pretrained(
            directory,
            dtype=dtype,
            attn_implementation="eager" if capped else None,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:  # Whatever a broken checkpoint makes transformers or safetensors raise.
        raise UserError(f"reward model {directory} cannot be loaded: {one_line(error)}") from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    model, loaded = found
    # Weights that it does not find, transformers fills with random numbers.
    for name in sorted(loaded["missing_keys"]):
        raise UserError(f"reward model {directory}: no weight 'model.{name}'")
    return model


def _head(directory: Path) -> Float[Tensor, " D"]:
    """The weights of the only label, not rounded to the decoder's type. The scorer has seen that they are there."""
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if HEAD in set(file.keys()):
                return file.get_tensor(HEAD)[0].float()
    raise FileNotFoundError(f"{directory}: no weight {HEAD}")
