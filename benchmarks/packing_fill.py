"""How full the rows are that real answers are packed into, against padding each example.

    python benchmarks/packing_fill.py ANSWERS.jsonl.gz [--batch-size 128] [--max-length 2048] [--epochs 3]

ANSWERS holds one JSON object a line with `prompt` and `response`. Lengths in tokens come from a byte-level BPE of
16,384 tokens trained on the texts themselves, about as many a word as a large model's tokenizer has on English, with a
ChatML template. Fill is the share of computed positions that hold a token. The path is the trainer's own:
`data.examples` and `data.packing`.
"""

import argparse
import gzip
import json
import time
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fusejax.data.batch import max_examples_per_row
from fusejax.data.examples import tokenize
from fusejax.data.packing import PackingPlan, num_steps
from fusejax.data.records import SFTExample, Shards, encode

TEMPLATE = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    with gzip.open(args.answers, "rt", encoding="utf-8") as file:
        answers = [json.loads(line) for line in file]

    tokenizer = train_tokenizer([text for answer in answers for text in (answer["prompt"], answer["response"])])
    start = time.perf_counter()
    tokenized = tokenize(as_shards(answers), tokenizer, max_length=args.max_length)
    seconds = time.perf_counter() - start
    words = sum(len(answer[key].split()) for answer in answers for key in ("prompt", "response"))
    print(f"{tokenized.summary()}; {tokenized.lengths.sum() / words:.2f} tokens a word")
    print(f"tokenised in {seconds:.1f} s, {len(answers) / seconds:,.0f} examples/s")
    lengths = tokenized.lengths
    print(f"lengths: mean {lengths.mean():.0f}, median {np.median(lengths):.0f}, longest {lengths.max()}\n")

    print(f"batch {args.batch_size}, {args.epochs} epochs{'fill':>32}  rows a step  ms to plan a step")
    for row_length in (2 * args.max_length, args.max_length):
        report(lengths, row_length, args)


def report(lengths: np.ndarray, row_length: int, args: argparse.Namespace) -> None:
    plan = PackingPlan(
        lengths,
        batch_size=args.batch_size,
        row_length=row_length,
        max_examples_per_row=max_examples_per_row(row_length),
        seed=0,
    )
    start = time.perf_counter()
    steps = [plan.rows(step) for step in range(num_steps(len(lengths), args.batch_size, args.epochs))]
    milliseconds = 1000 * (time.perf_counter() - start) / len(steps)
    batches = [lengths[[example for row in rows for example in row]] for rows in steps]
    tokens = sum(batch.sum() for batch in batches)
    counts = np.array([len(rows) for rows in steps])

    def line(name: str, positions: int, rest: str = "") -> None:
        print(f"{name:<45}{tokens / positions:>8.1%}{rest}")

    line(f"packed, row length {row_length}", counts.sum() * row_length, f"{counts.mean():>13.2f}{milliseconds:>18.2f}")
    for rows in (4, 8, 16):
        line(f"  with empty rows, {rows} rows a microbatch", (-(-counts // rows) * rows).sum() * row_length)
    if row_length == args.max_length:
        line("each example padded to max_length", len(steps) * args.batch_size * args.max_length)
        line("each padded to the longest of its batch", sum(batch.max() for batch in batches) * args.batch_size)


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=16_384,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    wrapped.chat_template = TEMPLATE
    return wrapped


def as_shards(answers: list[dict[str, str]]) -> Shards:
    """The answers as records in memory."""
    records = []
    for i, answer in enumerate(answers):
        turns = [
            {"role": role, "content": answer[key]} for role, key in (("user", "prompt"), ("assistant", "response"))
        ]
        records.append(encode(SFTExample(str(i), "answers", "instruction", "mixed", turns)))
    return Shards("answers", "sft", "", [records])


if __name__ == "__main__":
    main()
