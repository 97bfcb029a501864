"""TRL's own trainers, with their defaults but for what makes the arithmetic the same; DPO with its live reference.

python trl_steps.py CASE
"""

import sys
import tempfile

import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from worker import BETA, LEARNING_RATE, MAX_GRAD_NORM, Case, Report


def main() -> None:
    case, report = Case(sys.argv[1]), Report()
    transformers.logging.set_verbosity_error()

    def load():
        return AutoModelForCausalLM.from_pretrained(case.model, dtype=torch.float32, attn_implementation="sdpa")

    settings = {
        "per_device_train_batch_size": len(case.batches[0]),
        "max_steps": len(case.steps),
        "max_length": case.max_length,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": MAX_GRAD_NORM,
        "optim": "adamw_torch_fused",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), pad_token="<pad>", eos_token="<eos>")
    examples = [example for batch in case.steps for example in batch]
    with tempfile.TemporaryDirectory() as folder:
        common = {"train_dataset": dataset(case, examples), "processing_class": tokenizer, "callbacks": [Watch(report)]}
        if case.task == "dpo":
            arguments = DPOConfig(folder, beta=BETA, **settings)
            trainer = PairTrainer(load(), ref_model=load(), args=arguments, **common)
        else:
            arguments = SFTConfig(folder, completion_only_loss=True, **settings)
            trainer = ConversationTrainer(load(), args=arguments, **common)
        trainer.train()
    report.print("trl", "torch", "transformers")


def dataset(case: Case, examples) -> Dataset:
    if case.task == "dpo":
        columns = ((f"{name}_ids", name) for name in ("prompt", "chosen", "rejected"))
        return Dataset.from_dict({column: [example[name] for example in examples] for column, name in columns})
    return Dataset.from_dict(
        {
            "input_ids": [example["prompt"] + example["chosen"] for example in examples],
            "completion_mask": [[0] * len(example["prompt"]) + [1] * len(example["chosen"]) for example in examples],
        }
    )


class ConversationTrainer(SFTTrainer):
    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)


class PairTrainer(DPOTrainer):
    def _prepare_dataset(self, dataset, *_):
        return dataset  # has its token ids

    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)


class Watch(TrainerCallback):
    def __init__(self, report: Report):
        self.report = report

    def on_train_begin(self, *_, **__):
        self.report.lap()

    def on_step_end(self, *_, **__):
        self.report.seconds.append(self.report.lap())

    def on_log(self, *_, logs, **__):
        if "loss" in logs:
            self.report.losses.append(float(logs["loss"]))


if __name__ == "__main__":
    main()
