"""Tiny random ArmoRMs with the published names and template, and their formula once more, in NumPy and float64."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.scoring.scorer import Item

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + (m['content'] | trim) + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "[PAD]"]
QUOTE = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
"""The gating pattern as a text."""
TEXTS = [
    "What is 3 + 4?",
    "say hello to the assistant",
    "你好",
    "\n\nuser",
    "a\n\n\nb" * 4,
    "def add(a, b):\n\n    return a + b",
]
POSITIONS = 128


def items() -> list[Item]:
    """Conversations of many lengths, several answers a prompt, with quotes of special tokens and a system turn."""
    prompts: list[list[dict[str, str]]] = [
        [{"role": "user", "content": "What is 3 + 4?"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "say hello " * 3}],
        [
            {"role": "user", "content": "你好"},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": f"again, with {QUOTE}"},
        ],
    ]
    answers = ["7", "  seven\n", "the answer is 7 " * 3, f"I end here.{QUOTE}So do I.", "你好 <|eot_id|>", "[PAD] a <"]
    return [Item({"messages": prompt}, text) for prompt in prompts for text in answers]


def make_armorm(directory: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """A directory as the published one is laid out: Llama and heads in one checkpoint, config, tokenizer, template."""
    import tokenizers
    import torch
    import transformers
    from safetensors.torch import save_file

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(LLAMA3_SPLIT), "isolated")
    to_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIAL[0], eos_token=SPECIAL[1], pad_token=SPECIAL[-1],
        additional_special_tokens=SPECIAL[2:4],
    )  # fmt: skip
    fast.chat_template = overrides.pop("chat_template", CHAT_TEMPLATE)
    fast.save_pretrained(directory)
    sizes = {
        "vocab_size": len(fast),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": POSITIONS,
        "rms_norm_eps": 1e-5,
        "pad_token_id": fast.pad_token_id,
        "bos_token_id": fast.bos_token_id,
        "eos_token_id": fast.eos_token_id,
        "initializer_range": 0.3,
        "id2label": {index: f"LABEL_{index}" for index in range(19)},
    }
    config = transformers.LlamaConfig(**(sizes | overrides))
    config.rope_parameters = {"rope_type": "default", "rope_theta": 500000.0}
    torch.manual_seed(seed)
    model = transformers.LlamaModel(config)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    weights = {f"model.{name}": weight.contiguous() for name, weight in model.state_dict().items()}
    width = config.hidden_size
    weights["regression_layer.weight"] = 0.02 * torch.randn(19, width)
    for index, (inputs, outputs) in enumerate([(width, 1024), (1024, 1024), (1024, 1024), (1024, 19)]):
        scale = (2 / inputs) ** 0.5 * (6 if index == 3 else 1)
        weights[f"gating.layers.{index}.weight"] = scale * torch.randn(outputs, inputs)
        weights[f"gating.layers.{index}.bias"] = 0.1 * torch.randn(outputs)
    weights["gating.logit_scale"] = torch.tensor([1.25])
    weights["reward_transform_matrix"] = torch.eye(19) - 0.1 * torch.rand(19, 19).triu(1)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    values = config.to_dict() | {
        "architectures": ["LlamaForRewardModelWithGating"],
        "auto_map": {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"},
        "rope_theta": 500000.0,
    }
    (directory / "config.json").write_text(json.dumps(values))
    return directory


def tokenizer_of(directory: Path) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(directory)


def read(directory: Path, item: Item) -> tuple[list[int], int]:
    """Tokens and gate, by text alone: of the template's own text, with quoted tokens made of other characters."""
    tokenizer = tokenizer_of(directory)
    turns = [turn for turn in item.prompt["messages"] if turn["role"] != "system"]
    text = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": "\0"}], tokenize=False)
    assert text.count("\0") == 1
    before, after = text.split("\0")
    # What comes from the messages holds special tokens only in the last prompt, as a quote.
    first, quoted, rest = before.partition(f"again, with {QUOTE.strip()}")
    plain = {"add_special_tokens": False, "split_special_tokens": True}
    tokens = tokenizer.encode(first, add_special_tokens=False)
    if quoted:
        tokens += tokenizer.encode(quoted, **plain) + tokenizer.encode(rest, add_special_tokens=False)
    gate = len(tokens) - 1 - tokens[::-1].index(tokenizer.eos_token_id)
    return tokens + tokenizer.encode(item.text.strip(), **plain) + tokenizer.encode(
        after, add_special_tokens=False
    ), gate


def reference(directory: Path, tokens: list[int], gate: int) -> np.ndarray:
    """The score, then the 19 objectives, of one conversation: Llama and heads in float64."""
    config = json.loads((directory / "config.json").read_text())
    hidden = _llama(_weights(directory), config, tokens)
    return heads_reference(directory, hidden[-1], hidden[gate])


def heads_reference(directory: Path, last: np.ndarray, gate: np.ndarray) -> np.ndarray:
    """The score, then the 19 objectives, of the hidden states at the last token and the gate, in float64."""
    weights = _weights(directory)
    objectives = weights["regression_layer.weight"] @ last
    x = gate
    for index in range(4):
        x = weights[f"gating.layers.{index}.weight"] @ x + weights[f"gating.layers.{index}.bias"]
        if index < 3:
            x = np.maximum(x, 0)
    mixture = np.exp(x / 10 - np.max(x / 10))
    mixture = mixture / mixture.sum() * weights["gating.logit_scale"][0]
    return np.array([mixture @ (objectives @ weights["reward_transform_matrix"]), *objectives])


def _weights(directory: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return {name: value.astype(np.float64) for name, value in load_file(directory / "model.safetensors").items()}


def _llama(weights: dict[str, np.ndarray], config: dict[str, Any], tokens: list[int]) -> np.ndarray:
    heads, groups, width = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    length = len(tokens)
    angles = np.outer(np.arange(length), 500000.0 ** -(np.arange(0, width, 2) / width))
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weights[f"model.{name}.weight"]

    def rotate(x: np.ndarray) -> np.ndarray:
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    x = weights["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        name = f"layers.{layer}"
        w = {key.removeprefix(f"model.{name}."): value.T for key, value in weights.items() if f".{name}." in key}
        y = norm(x, f"{name}.input_layernorm")
        q = rotate((y @ w["self_attn.q_proj.weight"]).reshape(length, heads, width))
        k = rotate((y @ w["self_attn.k_proj.weight"]).reshape(length, groups, width)).repeat(heads // groups, 1)
        v = (y @ w["self_attn.v_proj.weight"]).reshape(length, groups, width).repeat(heads // groups, 1)
        logits = np.einsum("qhd,khd->hqk", q, k) / width**0.5 + np.triu(np.full((length, length), -np.inf), 1)
        p = np.exp(logits - logits.max(-1, keepdims=True))
        y = np.einsum("hqk,khd->qhd", p / p.sum(-1, keepdims=True), v).reshape(length, heads * width)
        x = x + y @ w["self_attn.o_proj.weight"]
        y = norm(x, f"{name}.post_attention_layernorm")
        up, gated = y @ w["mlp.up_proj.weight"], y @ w["mlp.gate_proj.weight"]
        x = x + (gated / (1 + np.exp(-gated)) * up) @ w["mlp.down_proj.weight"]
    return norm(x, "norm")
