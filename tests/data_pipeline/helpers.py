"""Tiny chat models made on the spot, rewards to name in configs, and functions for worker processes."""

import json
import os
import time
from pathlib import Path
from typing import Any

import yaml

TEXTS = [
    "What is 3 + 4?",
    "Write a function add.",
    "say hello",
    "你好",
    "the answer is 7",
    "def add(a, b): return a + b",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_checkpoint(directory: Path, *, seed: int = 0, family: str = "llama", **overrides: Any) -> Path:
    """A randomly initialised model of two layers with its own byte-level tokenizer and a chat template."""
    import tokenizers
    import torch
    import transformers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=special,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = overrides.pop("chat_template", CHAT_TEMPLATE)
    sizes = {
        "vocab_size": len(fast),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "eos_token_id": fast.eos_token_id,
        "bos_token_id": None,
        "pad_token_id": fast.eos_token_id,
        "initializer_range": 0.3,
    }
    config = transformers.AutoConfig.for_model(family, **(sizes | overrides))
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    # Random models hardly ever say one certain token: with forty of them, answers end.
    model.generation_config.eos_token_id = [fast.eos_token_id, *range(240, 280)]
    model.save_pretrained(directory)
    fast.save_pretrained(directory)
    return directory


def write_jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def reward(prompt: dict[str, Any], text: str) -> tuple[float, str]:
    """Between 0.05 and 0.15, and a verdict, out of the text's length."""
    value = 0.05 + 0.01 * (len(text) % 11)
    return value, "correct" if value > 0.1 else "wrong"


class Reward:
    """A reward as a class."""

    def score(self, prompt: dict[str, Any], text: str) -> tuple[float | None, str | None]:
        return reward(prompt, text)


def strange_reward(prompt: dict[str, Any], text: str) -> tuple[float, str]:
    """What users' code can do: fail, give NaN, give a verdict that is none."""
    if text == "fail":
        raise ZeroDivisionError("division by zero")
    if text == "surrogate":
        raise ValueError("\udcff")
    return (float("nan"), "correct") if text == "nan" else (0.1, "perhaps")


def misbehave(task: str) -> tuple[str]:
    """For worker processes: does what the task says."""
    if task == "hang":
        time.sleep(60)
    if task == "crash":
        os._exit(3)
    if task == "eat":
        return (str(bytearray(2**32)),)
    return (task.upper(),)


def write_config(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path
