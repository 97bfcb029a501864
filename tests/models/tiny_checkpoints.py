"""Tiny random checkpoints of every family, made by transformers: the reference that our decoder is held against."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

_COMMON = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # A padding token would have no gradient in torch's embedding.
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True, "rope_parameters": _LLAMA3_ROPE},
    "llama-untied": {"model_type": "llama", "tie_word_embeddings": False, "rope_parameters": _LLAMA3_ROPE},
    "qwen2": {"model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 12,
        "query_pre_attn_scalar": 20,
        "sliding_window": 6,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 1.5,
    },
    "mistral-window": {"model_type": "mistral", "sliding_window": 6, "head_dim": 10},
    "mistral-full": {"model_type": "mistral", "sliding_window": None},
    "qwen3": {"model_type": "qwen3", "head_dim": 10},
    # Two blocks of three layers, and the first layer of a third.
    "gemma3": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "sliding_window_pattern": 3,
        "head_dim": 12,
        "query_pre_attn_scalar": 20,
        "sliding_window": 6,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    },
}
FAMILIES = tuple(CONFIGS)


# For a model of text and images, whose text half is a `CONFIGS["gemma3"]`.
_IMAGES = {
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    },
    "mm_tokens_per_image": 1,
    "image_token_index": 95,
    "pad_token_id": None,
    "eos_token_id": [1, 7],
}


def reference(family: str, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A float32 model whose every parameter is random: norms and biases, too, which start trivial otherwise."""
    return _randomized(transformers.AutoConfig.for_model(**{**_COMMON, **CONFIGS[family], **overrides}), seed)


def reference_with_images() -> transformers.PreTrainedModel:
    """A model of text and images, as `reference`. Its text half differs from that of `reference("gemma3")`."""
    config = {"model_type": "gemma3", "text_config": {**_COMMON, **CONFIGS["gemma3"]}, **_IMAGES}
    return _randomized(transformers.AutoConfig.for_model(**config), seed=0)


def _randomized(config: transformers.PreTrainedConfig, seed: int) -> transformers.PreTrainedModel:
    torch.manual_seed(seed)
    # Not sdpa, which has no soft cap.
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.add_(0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
    return model


def checkpoint(directory: Path, family: str, **overrides: Any) -> transformers.PreTrainedModel:
    """A reference model, also saved in `directory`."""
    model = reference(family, **overrides)
    model.save_pretrained(directory)
    return model


def error(ours: Any, theirs: torch.Tensor) -> float:
    """Largest deviation, relative to the largest reference value."""
    expected = theirs.detach().float().numpy()
    return float(np.abs(np.asarray(ours, np.float32) - expected).max() / np.abs(expected).max())
