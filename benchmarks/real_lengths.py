"""Useful tokens a second on real answers, whose lengths differ.

    python -m benchmarks.real_lengths ANSWERS.jsonl.gz [key=value ...] [--turns 3] [--tasks sft dpo] [--sequences 16]

ANSWERS holds one JSON object a line with `prompt` and `response`, several answers to a prompt: the longest and another
make a pair. Prompts are drawn at random and stay in that order; lengths are cut at 2048, and tokens are those of
`packing_fill.py`. Peers pad each batch to its longest sequence, ours are packed. Useful tokens are those of prompts and
answers. Otherwise as `equal_lengths.py`.
"""

import argparse
import gzip
import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.packing_fill import train_tokenizer
from benchmarks.training.case import SMALL, write_case, write_model
from benchmarks.training.compare import PEERS, about, ours, run_in_turn, same_losses, table
from benchmarks.training.worker import Example

MAX_LENGTH = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", default=["sft", "dpo"], choices=["sft", "dpo"])
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--trainers", nargs="+", default=[peer.name for peer in PEERS])
    parser.add_argument("--devices", type=int, default=1, help="that our run makes of the CPU")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    peers = tuple(peer for peer in PEERS if peer.name in args.trainers)
    trainers = (ours(*args.overrides, devices=args.devices), *peers)
    examples = read(args.answers)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), SMALL)
        for task in args.tasks:
            size = args.sequences // 2 if task == "dpo" else args.sequences
            batches = [examples[step * size : (step + 1) * size] for step in range(args.steps)]
            write_case(Path(folder), task, batches, max_length=MAX_LENGTH, passes=2)
            results = run_in_turn(trainers, Path(folder), turns=args.turns)
            same_losses(results, tolerance=1e-3)
            print(f"\n{task}, {args.sequences} sequences a step, {describe(batches, task)}")
            print(table(results, {"useful tokens/s": sum(sum(lengths(batch, task)) for batch in batches)}), flush=True)
    print(about(results))


def read(file: Path) -> list[Example]:
    """One example a prompt, in random order."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        answers = [json.loads(line) for line in lines]
    tokenizer = train_tokenizer([text for answer in answers for text in (answer["prompt"], answer["response"])])

    def from_one(ids: list[int]) -> list[int]:
        """0 is left out, for that is what peers pad with."""
        return [token + 1 for token in ids]

    by_prompt: dict[str, list[list[int]]] = {}
    for answer in answers:
        by_prompt.setdefault(answer["prompt"], []).append(from_one(tokenizer(answer["response"])["input_ids"]))
    examples = []
    for prompt, responses in by_prompt.items():
        messages = [{"role": "user", "content": prompt}]
        ids = from_one(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
        room = MAX_LENGTH - len(ids)
        longest, other, *_ = sorted(responses, key=len, reverse=True)
        if room > 0 and longest[:room] != other[:room]:
            examples.append({"prompt": ids, "chosen": longest[:room], "rejected": other[:room]})
    return [examples[i] for i in np.random.default_rng(0).permutation(len(examples))]


def lengths(batch: list[Example], task: str) -> list[int]:
    answers = ("chosen", "rejected") if task == "dpo" else ("chosen",)
    return [len(example["prompt"]) + len(example[name]) for example in batch for name in answers]


def describe(batches: list[list[Example]], task: str) -> str:
    found = [lengths(batch, task) for batch in batches]
    filled = sum(map(sum, found)) / sum(max(batch) * len(batch) for batch in found)
    every = [length for batch in found for length in batch]
    return f"{min(every)} to {max(every)} tokens, mean {np.mean(every):.0f}; padded batches would be {filled:.0%} full"


if __name__ == "__main__":
    main()
