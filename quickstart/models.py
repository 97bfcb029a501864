"""The tiny Hugging Face checkpoints of the quickstart: four source models and the target, with random weights.

Each has its own architecture, tokenizer and chat template, as the models of the paper do: no token id of one means
anything to another, and only text passes between them.

    llama     Llama-3 shaped    byte-level BPE     Llama-3 template
    qwen2     Qwen2 shaped      byte-level BPE     ChatML
    gemma2    Gemma-2 shaped    metaspace BPE      Gemma template (turns "user" and "model")
    mistral   Mistral shaped    metaspace BPE      Mistral template ([INST])
    target    Llama-3 shaped    byte-level BPE     Llama-3 template
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_CONTEXT = 256
_SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": _CONTEXT,
    "rms_norm_eps": 1e-5,
}

_LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "[INST] {{ message['content'] }}[/INST]{% elif message['role'] == 'assistant' %}"
    " {{ message['content'] | trim }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant turns are supported') }}{% endif %}{% endfor %}"
)


@dataclasses.dataclass(frozen=True)
class Family:
    """What makes one model's checkpoint.

    Attributes:
      config: of `config.json`, beside the vocabulary size and the special tokens' ids.
      kind: of the tokenizer.
      vocab_size: at most; a tokenizer stops merging when nothing is left to merge.
      special_tokens: the first is the padding.
      bos: whether texts begin with a token of their own.
      end_of_turn: the special token that ends an answer.
      template: of chats, in Jinja.
    """

    config: dict[str, Any]
    kind: Literal["byte", "metaspace"]
    vocab_size: int
    special_tokens: tuple[str, ...]
    bos: str | None
    end_of_turn: str
    template: str


_LLAMA = Family(
    config={
        **_SHAPE,
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": _CONTEXT // 2,
        },
    },
    kind="byte",
    vocab_size=1200,
    special_tokens=(
        "<|finetune_right_pad_id|>",
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ),
    bos="<|begin_of_text|>",
    end_of_turn="<|eot_id|>",
    template=_LLAMA_3,
)

SOURCES: dict[str, Family] = {
    "llama": _LLAMA,
    "qwen2": Family(
        config={
            **_SHAPE,
            "model_type": "qwen2",
            "architectures": ["Qwen2ForCausalLM"],
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "use_sliding_window": False,
            "rope_theta": 10000.0,
        },
        kind="byte",
        vocab_size=1250,
        special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        bos=None,
        end_of_turn="<|im_end|>",
        template=_CHATML,
    ),
    "gemma2": Family(
        config={
            **_SHAPE,
            "model_type": "gemma2",
            "architectures": ["Gemma2ForCausalLM"],
            "hidden_activation": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 32,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "rope_theta": 10000.0,
        },
        kind="metaspace",
        vocab_size=1200,
        special_tokens=("<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        end_of_turn="<end_of_turn>",
        template=_GEMMA,
    ),
    "mistral": Family(
        config={
            **_SHAPE,
            "model_type": "mistral",
            "architectures": ["MistralForCausalLM"],
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "sliding_window": 64,
            "rope_theta": 10000.0,
        },
        kind="metaspace",
        vocab_size=1150,
        special_tokens=("<pad>", "<s>", "</s>", "[INST]", "[/INST]"),
        bos="<s>",
        end_of_turn="</s>",
        template=_MISTRAL,
    ),
}
TARGET: Family = dataclasses.replace(_LLAMA, vocab_size=900)


def train_tokenizer(family: Family, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of the family's kind, trained on `texts`.

    Digits and Chinese characters are never merged with a neighbour: numbers are copied and computed digit by digit, and
    without spaces between words a merge would swallow half a sentence.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=family.kind == "metaspace"))
    split: list[Any] = [
        pre_tokenizers.Split(Regex(r"[\u3000-\u9fff\uff00-\uffef]"), "isolated"),
        pre_tokenizers.Digits(individual_digits=True),
    ]
    special = [AddedToken(token, special=True, normalized=False) for token in family.special_tokens]
    alphabet: list[str] = []
    if family.kind == "byte":
        tokenizer.normalizer = normalizers.NFC()
        split.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        # As SentencePiece does it: a space is the letter "▁", and unknown characters fall back to their bytes.
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        split += [
            pre_tokenizers.Split(Regex(r"▁?\p{L}+"), "isolated"),
            pre_tokenizers.Split("\n", "isolated"),
        ]
        special += [AddedToken(f"<0x{byte:02X}>", special=False, normalized=False) for byte in range(256)]
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    trainer = trainers.BpeTrainer(
        vocab_size=family.vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    # The roles' names stand in every chat, so they become single tokens.
    roles = ["user", "assistant", "model"] * 1000
    tokenizer.train_from_iterator([*texts, *roles], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=family.bos,
        eos_token=family.end_of_turn,
        pad_token=family.special_tokens[0],
        additional_special_tokens=[
            token for token in family.special_tokens[1:] if token not in (family.bos, family.end_of_turn)
        ],
        chat_template=family.template,
        model_max_length=_CONTEXT,
    )


def make_checkpoint(family: Family, texts: Iterable[str], directory: Path, *, seed: int) -> None:
    """Writes a checkpoint with random weights and a tokenizer trained on `texts`, as transformers expects it."""
    from fusejax.models.decoder.config import DecoderConfig
    from fusejax.models.huggingface import checkpoint as huggingface

    tokenizer = train_tokenizer(family, texts)
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    hf_config = {**family.config, **ids}
    config = DecoderConfig.from_hf(hf_config)
    model = huggingface.init(config, seed=seed)
    huggingface.save(model, config, directory, hf_config=hf_config, dtype="float32")
    tokenizer.save_pretrained(directory)
    generation = {key: value for key, value in ids.items() if key != "vocab_size" and value is not None}
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
