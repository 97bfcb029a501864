"""Log-probabilities with transformers, on CPU or one GPU: one conversation at a time, in float32 after the logits.

One at a time, so that a conversation's numbers depend on nothing else: a run that was killed goes on to the same bytes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Float
from torch import Tensor

from data_pipeline.distributions.backend import Asked, Rows
from fusejax.common.cli import UserError, one_line

CHUNK = 256
"""Places whose logits are in float32 at a time: 256 MiB with a vocabulary of 262,144."""


class TransformersBackend:
    """A causal language model. Raises `UserError` where the directory holds no whole one."""

    engine = f"transformers {transformers.__version__}"

    def __init__(self, name: str, directory: Path, dtype: str, top_k: int):
        self._top_k = top_k
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = _load(name, directory, dtype).to(device).eval()

    def rows(self, asked: Sequence[Asked]) -> Iterator[Rows]:
        """See `backend.Backend`."""
        return map(self._rows, asked)

    def close(self) -> None:
        """Releases the model's memory."""
        del self._model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _rows(self, asked: Asked) -> Rows:
        tokens = torch.from_numpy(asked.tokens.astype(np.int64)).to(self._model.device)
        inputs, labels = tokens[None, :-1], tokens[asked.first :]
        logits = self._model(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            use_cache=False,
            logits_to_keep=len(labels),
        ).logits[0]
        parts = zip(logits.split(CHUNK), labels.split(CHUNK), strict=True)
        found = [[each.cpu().numpy() for each in self._chunk(*part)] for part in parts]
        logprobs, top_ids, top_logprobs = (np.concatenate(each) for each in zip(*found, strict=True))
        return Rows(logprobs, top_ids.astype(np.int32), top_logprobs)

    def _chunk(self, logits: Float[Tensor, "rows V"], labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logprobs = logits.float().log_softmax(-1)
        top, ids = logprobs.topk(self._top_k, dim=-1)
        return logprobs.gather(-1, labels[:, None])[:, 0], ids, top


def _load(name: str, directory: Path, dtype: str) -> Any:
    transformers.utils.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False)
        # Fused attention leaves the soft cap of Gemma-2's scores out, in some versions of transformers in silence.
        capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
        found: Any = transformers.AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            attn_implementation="eager" if capped else None,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:  # Whatever a broken checkpoint makes transformers or safetensors raise.
        raise UserError(f"sources: {name}: {directory} cannot be loaded: {one_line(error)}") from error
    model, loaded = found
    # Weights that it does not find, transformers fills with random numbers.
    for weight in sorted(loaded["missing_keys"]):
        raise UserError(f"sources: {name}: {directory}: no weight {weight!r}")
    return model
