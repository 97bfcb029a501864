"""What models make of the held-out prompts: log-probabilities by transformers, a judge that is not the trainer.

The loss is that of the best answers. *Reward accuracy* is the share of pairs in which the chosen answer has the higher
implicit reward: the log ratio of the model to the reference, per token. Errors are standard errors over prompts.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from fusejax.data.chat import encode_conversation, load_tokenizer
from fusejax.data.records import PreferencePair, SFTExample, open_shards

Estimate = tuple[float, float]
"""A mean and its standard error."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Conversations of held-out prompts."""

    best: list[list[Any]]
    """With the best answer: those held out of SFT, then the chosen ones of the pairs."""
    rejected: list[list[Any]]
    """With the worse answer of each pair."""


def read(data: Path) -> HeldOut:
    """The held-out part of the data pipeline's output."""
    examples, pairs = list(open_shards(data / "sft" / "eval")), list(open_shards(data / "dpo" / "eval"))
    best: list[list[Any]] = [example.messages for example in examples if isinstance(example, SFTExample)]
    of_pairs = [pair for pair in pairs if isinstance(pair, PreferencePair)]
    best += [pair.prompt + pair.chosen for pair in of_pairs]
    return HeldOut(best, [pair.prompt + pair.rejected for pair in of_pairs])


def mean_logprobs(directory: Path, conversations: list[list[Any]], *, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean log-probability of the answer's tokens, and how many there are, float64 [N]: tokens as in training.

    In float32, on a GPU if torch has one.

    Args:
      directory: a Hugging Face checkpoint.
      max_length: conversations are cut there, as in training.
    """
    import torch  # slow to import
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(directory)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval().to(device)
    encoded = [encode_conversation(tokenizer, messages, first=len(messages) - 1) for messages in conversations]
    sums, counts = np.zeros(len(encoded)), np.zeros(len(encoded))
    with torch.no_grad():
        for index, (tokens, mask, _) in enumerate(encoded):
            ids = torch.tensor(tokens[:max_length], device=device).long()
            targets = torch.tensor(mask[1:max_length], device=device)
            logits = model(ids[None]).logits[0, :-1][targets]
            found = logits.log_softmax(1).gather(1, ids[1:][targets][:, None])
            sums[index], counts[index] = float(found.double().sum()), len(found)
    return sums / counts, counts


def measure(models: dict[str, Path], heldout: HeldOut, *, max_length: int) -> dict[str, Any]:
    """The table of results.

    Args:
      models: Hugging Face checkpoints: `base`, `sft`, which is the reference, and `dpo`.
      max_length: see `mean_logprobs`.
    """
    pairs = len(heldout.rejected)
    best, rejected = {}, {}
    for name, directory in models.items():
        asked = heldout.best + ([] if name == "base" else heldout.rejected)
        means, counts = mean_logprobs(directory, asked, max_length=max_length)
        best[name], rejected[name] = means[: len(heldout.best)], means[len(heldout.best) :]
    longer = counts[len(heldout.best) - pairs : len(heldout.best)] > counts[len(heldout.best) :]
    margins = (best["dpo"] - best["sft"])[-pairs:] - (rejected["dpo"] - rejected["sft"])
    right = margins > 0
    return {
        "prompts": len(heldout.best),
        "pairs": pairs,
        "loss": {name: estimate(-values) for name, values in best.items()},
        "loss_fall": {
            "sft": estimate(best["sft"] - best["base"]),
            "dpo": estimate(best["dpo"] - best["sft"]),
        },
        "likelier": {name: share(best[name][-pairs:] > rejected[name]) for name in ("sft", "dpo")},
        "reward_accuracy": share(right),
        "reward_accuracy_chosen_longer": share(right[longer]),
        "reward_accuracy_chosen_shorter": share(right[~longer]),
        "chosen_longer": share(longer),
    }


def estimate(values: np.ndarray) -> Estimate:
    """Mean and standard error.

    >>> estimate(np.array([1.0, 2.0, 3.0]))
    (2.0, 0.5773502691896258)
    """
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def share(values: np.ndarray) -> Estimate:
    """Share of true values and its standard error.

    >>> share(np.array([True, True, False, True]))
    (0.75, 0.21650635094610965)
    """
    p = float(values.mean())
    return p, math.sqrt(p * (1 - p) / len(values))
