"""Tiny random sequence classifiers of several families, and their reward as transformers itself gives it."""

import functools
import json
from pathlib import Path
from typing import Any

from data_pipeline.scoring.scorer import Item
from tests.data_pipeline.helpers import CHAT_TEMPLATE, make_checkpoint

NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHAT_TEMPLATE
# The smallest heads that vLLM takes.
SIZES = {"hidden_size": 64, "head_dim": 32, "max_position_embeddings": 128}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    # Its padding token is none that the template writes.
    "qwen2": {"pad_token_id": 7},
    # Windows shorter than the conversations; a template without system turns.
    "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 32, "chat_template": NO_SYSTEM},
}


def make_classifier(directory: Path, family: str = "llama", *, labels: int = 1, **overrides: Any) -> Path:
    """A checkpoint as transformers saves it. Where nothing else is said, the template ends in the padding token."""
    import torch
    import transformers

    make_checkpoint(directory, family=family, **(SIZES | FAMILIES.get(family, {}) | overrides))
    (directory / "model.safetensors").unlink()
    (directory / "generation_config.json").unlink()
    config = transformers.AutoConfig.from_pretrained(directory, num_labels=labels)
    torch.manual_seed(1)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
    return directory


def items() -> list[Item]:
    """Conversations of many lengths, several answers a prompt, with a system turn and quotes of special tokens."""
    prompts: list[list[dict[str, str]]] = [
        [{"role": "user", "content": "What is 3 + 4?"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "say hello " * 3}],
        [
            {"role": "user", "content": "你好"},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": "the answer is"},
        ],
    ]
    answers = ["7", " seven\n", "the answer is 7 " * 3, "你好"]
    return [Item({"messages": prompt}, text) for prompt in prompts for text in answers]


@functools.cache
def _model(directory: Path) -> tuple[Any, Any]:
    import torch
    import transformers

    # Eager, since some versions of transformers leave out the soft cap of Gemma-2's scores otherwise.
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    return transformers.AutoTokenizer.from_pretrained(directory), model.eval()


def turns(directory: Path, item: Item) -> list[dict[str, str]]:
    """What the template takes."""
    found = [*item.prompt["messages"], {"role": "assistant", "content": item.text}]
    if found[0]["role"] == "system" and json.loads((directory / "config.json").read_text())["model_type"] == "gemma2":
        folded = f"{found[0]['content']}\n\n{found[1]['content']}"
        return [{"role": "user", "content": folded}, *found[2:]]
    return found


def reference(directory: Path, item: Item) -> float:
    """As the cards of such models show it: the logit that transformers gives for one conversation, in float32."""
    import torch

    tokenizer, model = _model(directory)
    tokens = tokenizer.apply_chat_template(turns(directory, item), return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        return float(model(**tokens).logits[0, 0])
