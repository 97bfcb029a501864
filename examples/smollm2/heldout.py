"""What models make of the held-out prompts: log-probabilities by transformers, a judge that is not the trainer.

The loss is that of the best answers. *Reward accuracy* is the share of pairs in which the chosen answer has the higher
implicit reward: the log ratio of the model to the reference, per token. Errors are standard errors over prompts.
"""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from fusejax.common.files import replacing
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


@dataclasses.dataclass(frozen=True)
class Likelihoods:
    """What a model makes of the held-out answers: mean log-probabilities of their tokens, in nats."""

    best: Float64[np.ndarray, "N"]
    rejected: Float64[np.ndarray, "P"]
    best_lengths: Float64[np.ndarray, "N"]
    """In tokens."""
    rejected_lengths: Float64[np.ndarray, "P"]

    @property
    def chosen(self) -> Float64[np.ndarray, "P"]:
        """Of the pairs' better answers, which are the last of the best ones."""
        return self.best[-len(self.rejected) :]

    @property
    def chosen_longer(self) -> Bool[np.ndarray, "P"]:
        """Whether of each pair the chosen answer has more tokens."""
        return self.best_lengths[-len(self.rejected) :] > self.rejected_lengths


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


def ask(
    models: dict[str, Path], heldout: HeldOut, *, max_length: int, folder: Path | None = None
) -> dict[str, Likelihoods]:
    """What each of the models makes of the held-out answers.

    Args:
      models: name -> Hugging Face checkpoint.
      max_length: see `mean_logprobs`.
      folder: where a model's numbers are kept, as `NAME.npz`. They are found again where weights and answers are the
        same.
    """
    found = {}
    for name, directory in models.items():
        kept = folder / f"{name}.npz" if folder is not None else None
        made_from = _fingerprint(directory, heldout, max_length)
        if kept is not None and kept.exists():
            with np.load(kept) as file:
                arrays = dict(file)
            if str(arrays.pop("made_from")) == made_from:
                found[name] = Likelihoods(**arrays)
                continue
        count = len(heldout.best)
        means, lengths = mean_logprobs(directory, heldout.best + heldout.rejected, max_length=max_length)
        found[name] = Likelihoods(means[:count], means[count:], lengths[:count], lengths[count:])
        if kept is not None:
            with replacing(kept) as file:
                np.savez(file, made_from=np.array(made_from), **dataclasses.asdict(found[name]))
    return found


def _fingerprint(directory: Path, heldout: HeldOut, max_length: int) -> str:
    """A hash of a model's weights and of what it is asked."""
    digest = hashlib.sha256(json.dumps([heldout.best, heldout.rejected, max_length]).encode())
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def measure(
    models: dict[str, Path], heldout: HeldOut, *, max_length: int, folder: Path | None = None
) -> dict[str, Any]:
    """The table of results.

    Args:
      models: `base`, `sft`, which is the reference, and `dpo`; the other arguments are those of `ask`.
    """
    found = ask(models, heldout, max_length=max_length, folder=folder)
    base, sft, dpo = (found[name] for name in ("base", "sft", "dpo"))
    right, longer = prefers(dpo, sft), sft.chosen_longer
    return {
        "prompts": len(sft.best),
        "pairs": len(longer),
        "loss": {name: estimate(-each.best) for name, each in found.items()},
        "loss_fall": {"sft": estimate(sft.best - base.best), "dpo": estimate(dpo.best - sft.best)},
        "likelier": {name: share(found[name].chosen > found[name].rejected) for name in ("sft", "dpo")},
        "reward_accuracy": share(right),
        "reward_accuracy_chosen_longer": share(right[longer]),
        "reward_accuracy_chosen_shorter": share(right[~longer]),
        "chosen_longer": share(longer),
    }


def prefers(model: Likelihoods, reference: Likelihoods) -> Bool[np.ndarray, "P"]:
    """Whether of each pair the chosen answer has the higher reward: the log ratio to the reference, per token."""
    return (model.chosen - reference.chosen) > (model.rejected - reference.rejected)


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
