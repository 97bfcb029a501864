"""The same model, the same examples for every trainer of a comparison: a folder as `worker.Case` reads it."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import yaml
from flax import nnx

from benchmarks.training.worker import BETA, LEARNING_RATE, MAX_GRAD_NORM, Example
from fusejax.models.decoder.config import DecoderConfig
from fusejax.models.decoder.decoder import Decoder
from fusejax.models.huggingface import checkpoint as huggingface

SMALL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32_000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
"""57.9 million parameters. Tunix's Llama has 1e6 for `rope_theta`, whatever its configuration says."""


def write_model(folder: Path, model: dict[str, Any], dtype: str = "float32") -> None:
    """A random checkpoint."""
    config = DecoderConfig.from_hf(model)
    decoder = Decoder(config, rngs=nnx.Rngs(0), param_dtype=jnp.dtype(dtype))
    huggingface.save(decoder, config, folder / "model", hf_config=model, dtype=dtype)


def write_case(
    folder: Path, task: str, batches: list[list[Example]], *, max_length: int, passes: int, dtype: str = "float32"
) -> None:
    """The batches of one task, for the model in `folder`, and the run's configuration as we take it."""
    case = {"task": task, "max_length": max_length, "passes": passes, "dtype": dtype, "batches": batches}
    (folder / "case.json").write_text(json.dumps(case))
    config: dict[str, Any] = {
        "task": task,
        "model": str(folder / "model"),
        "data": {"train": "none"},
        "output_dir": "none",
        "batch_size": len(batches[0]),
        "max_length": max_length,
        "optimizer": {
            "learning_rate": LEARNING_RATE,
            "schedule": "constant",
            "warmup_ratio": 0.0,
            "max_grad_norm": MAX_GRAD_NORM,
        },
        "dtype": {"params": dtype, "compute": dtype},
    }
    if task == "dpo":
        config["preference"] = {"beta": BETA}
    (folder / "train.yaml").write_text(yaml.safe_dump(config))


def random_batches(vocab_size: int, *, steps: int, examples: int, prompt: int, answer: int) -> list[list[Example]]:
    """Examples of equal lengths, of words drawn at random; 0 is left out, for that is what peers pad with."""
    random = np.random.default_rng(0)

    def words(count: int) -> list[int]:
        return random.integers(1, vocab_size, count).tolist()

    def example() -> Example:
        return {"prompt": words(prompt), "chosen": words(answer), "rejected": words(answer)}

    return [[example() for _ in range(examples)] for _ in range(steps)]
