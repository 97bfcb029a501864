"""Tunix's own trainers, with their defaults but for what makes the arithmetic the same; DPO with its live reference.

Rows are padded to the longest of their batch; so each batch is compiled for, in the pass that is not counted.

    python tunix_steps.py CASE
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params as llama_params
from tunix.sft import hooks, peft_trainer
from tunix.sft import utils as sft_utils
from tunix.sft.dpo import dpo_trainer
from worker import BETA, LEARNING_RATE, MAX_GRAD_NORM, Case, Report, padded


def main() -> None:
    case, report = Case(sys.argv[1]), Report()
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    optimizer = optax.chain(optax.clip_by_global_norm(MAX_GRAD_NORM), optax.adamw(LEARNING_RATE, weight_decay=0.0))
    settings = {"eval_every_n_steps": 10**9, "max_steps": len(case.steps)}
    with mesh:
        model = load(case.model, mesh)
        if case.task == "dpo":
            arguments = dpo_trainer.DPOTrainingConfig(beta=BETA, **settings)
            trainer = dpo_trainer.DPOTrainer(model, load(case.model, mesh), optimizer, arguments)
        else:
            trainer = peft_trainer.PeftTrainer(model, optimizer, peft_trainer.TrainingConfig(**settings))
            trainer = trainer.with_gen_model_input_fn(model_inputs)
        trainer.with_training_hooks(Losses(report))
        trainer.train(inputs(case, trainer.model, report))
    report.print("google-tunix", "jax", "flax")


def load(folder: str, mesh) -> llama.Llama3:
    config = json.loads((Path(folder) / "config.json").read_text())
    sizes = llama.ModelConfig(
        num_layers=config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        embed_dim=config["hidden_size"],
        hidden_dim=config["intermediate_size"],
        num_heads=config["num_attention_heads"],
        head_dim=config["head_dim"],
        num_kv_heads=config["num_key_value_heads"],
        rope_theta=config["rope_theta"],
        norm_eps=config["rms_norm_eps"],
    )
    return llama_params.create_model_from_safe_tensors(folder, sizes, mesh, jax.numpy.float32)


def inputs(case: Case, model: nnx.Module, report: Report) -> Iterator:
    """A batch as its turn comes; a step lasts from when it has its batch to when its parameters are there."""
    batches = [pairs(batch) if case.task == "dpo" else conversations(batch) for batch in case.batches]
    for step in range(len(case.steps)):
        report.lap()
        yield batches[step % len(batches)]
        jax.block_until_ready(nnx.state(model))
        report.seconds.append(report.lap())


def pairs(batch) -> dpo_trainer.TrainingInput:
    found = {}
    for name in ("prompt", "chosen", "rejected"):
        ids, mask = padded([example[name] for example in batch], left=name == "prompt")
        found |= {f"{name}_ids": np.array(ids, np.int32), f"{name}_mask": np.array(mask, np.int32)}
    # Both answers become rows of one array.
    longest = max(found["chosen_ids"].shape[1], found["rejected_ids"].shape[1])
    for name in ("chosen_ids", "chosen_mask", "rejected_ids", "rejected_mask"):
        found[name] = np.pad(found[name], ((0, 0), (0, longest - found[name].shape[1])))
    return dpo_trainer.TrainingInput(**found)


def conversations(batch) -> peft_trainer.TrainingInput:
    ids, _ = padded([example["prompt"] + example["chosen"] for example in batch])
    mask, _ = padded([[0] * len(example["prompt"]) + [1] * len(example["chosen"]) for example in batch])
    return peft_trainer.TrainingInput(np.array(ids, np.int32), np.array(mask, np.int32))


def model_inputs(example: peft_trainer.TrainingInput) -> dict:
    present = example.input_tokens != 0
    return {
        "input_tokens": example.input_tokens,
        "input_mask": example.input_mask,
        "positions": sft_utils.build_positions_from_mask(present),
        "attention_mask": sft_utils.make_causal_attn_mask(present),
    }


class Losses(hooks.TrainingHooks):
    def __init__(self, report: Report):
        self.report = report

    def on_train_step_end(self, _, __, loss):
        self.report.losses.append(float(loss))

    def on_train_start(self, *_):
        pass

    on_train_end = on_train_step_start = on_eval_step_start = on_eval_step_end = on_train_start


if __name__ == "__main__":
    main()
