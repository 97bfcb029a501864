"""A tiny checkpoint with its tokenizer, and shards of additions to train it on."""

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fusejax.config import TrainConfig
from fusejax.data.records import PreferencePair, PreferenceTriple, SFTExample, write_shards
from fusejax.models.decoder.config import DecoderConfig
from fusejax.models.huggingface import checkpoint as huggingface

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(["what is plus user assistant"] * 2, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


# As much of Gemma 3 as a small model can have: windows, two rotary bases, and a last layer after the whole blocks.
GEMMA3: dict[str, Any] = {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "num_hidden_layers": 5,
    "sliding_window": 6,
    "sliding_window_pattern": 2,
    "rope_theta": 1_000_000.0,
    "query_pre_attn_scalar": 8,
}


def make_world(folder: Path, **shape: Any) -> Path:
    """Fills a folder with `model/`, `sft/`, `dpo/` and `wrpo/{train,eval}`; `shape` changes the model."""
    tokenizer = make_tokenizer()
    hf_config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": len(tokenizer) + len(tokenizer) % 2,  # even, for tests that split it over devices
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "eos_token_id": tokenizer.eos_token_id,
        **shape,
    }
    config = DecoderConfig.from_hf(hf_config)
    huggingface.save(huggingface.init(config), config, folder / "model", hf_config=hf_config, dtype="float32")
    tokenizer.save_pretrained(folder / "model")
    write_additions(folder, count=60)
    return folder


def write_additions(folder: Path, count: int) -> None:
    generator = random.Random(0)
    singles, pairs, triples = [], [], []
    for i in range(count):
        a, b = generator.randrange(100), generator.randrange(100)
        question = [{"role": "user", "content": f"what is {a} plus {b}" + "?" * generator.randrange(5)}]
        right = [{"role": "assistant", "content": str(a + b)}]
        wrong = [{"role": "assistant", "content": f"about {a + b + generator.randrange(1, 50)}"}]
        singles.append(SFTExample(str(i), "additions", "math", "calculator", question + right))
        pairs.append(PreferencePair(str(i), "additions", "math", "calculator", question, right, wrong, 0.2, 0.1))
        said = [{"role": "assistant", "content": f"it is {a + b}"}]
        answers = (question, said, right, wrong)
        triples.append(PreferenceTriple(str(i), "additions", "math", "calculator", *answers, 0.3, 0.2, 0.1))
    for kind, examples in (("sft", singles), ("dpo", pairs), ("wrpo", triples)):
        for split, part in (("train", examples[12:]), ("eval", examples[:12])):
            write_shards(folder / kind, split, part, kind=kind, format="arrayrecord", num_shards=2, manifest={})


def settings(world: Path, output_dir: Path, task: str = "sft", **changes: Any) -> dict[str, Any]:
    """A run of a dozen steps as a configuration file holds it."""
    values: dict[str, Any] = {
        "task": "preference" if task == "wrpo" else task,
        "model": str(world / "model"),
        "data": {"train": str(world / task / "train"), "eval": str(world / task / "eval")},
        "output_dir": str(output_dir),
        "max_length": 64,
        "batch_size": 8,
        "epochs": 2,
        "optimizer": {"learning_rate": 1e-3},
        "dtype": {"params": "float32", "compute": "float32"},
        "packing": {"row_length": 128, "rows_per_device": 2},
        "remat": "none",
        "checkpoint": {"every_steps": 4, "keep": 2},
    }
    if task == "dpo":
        values["preference"] = {"beta": 10.0, "length_normalized": True}
        values["optimizer"] = {"learning_rate": 1e-4}
    if task == "wrpo":
        values["preference"] = {"loss": "wrpo", "beta": 10.0, "alpha": 0.5, "length_normalized": True}
        values["optimizer"] = {"learning_rate": 1e-4}
        values["packing"] = {"row_length": 192, "rows_per_device": 2}
    return values | changes


def run_config(world: Path, output_dir: Path, task: str = "sft", **changes: Any) -> TrainConfig:
    return TrainConfig.model_validate(settings(world, output_dir, task, **changes))


def train_command(world: Path, output_dir: Path, task: str = "sft", **changes: Any) -> list[str]:
    """`python -m fusejax.train` for such a run."""
    path = output_dir.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(settings(world, output_dir, task, **changes)))
    return [sys.executable, "-m", "fusejax.train", "--config", str(path)]
