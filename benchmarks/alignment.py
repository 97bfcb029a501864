"""How long it takes to bring a source's distributions to the target's tokens, for a data set of the recipe's size.

    python benchmarks/alignment.py SOURCE TARGET ANSWERS.jsonl.gz [--examples 94539] [--tokens 500] [--top 10]

SOURCE and TARGET are directories (or Hub ids) of two models, of which only the tokenizers are read. ANSWERS holds one
JSON object a line with `response`. Its texts, one after the other, are cut into answers of `--tokens` tokens of the
source, which are used again and again. The source's `--top` tokens at a place are the real next one and others drawn as
often as the texts have them. Printed are the vocabulary map, the share of places that have a row, and time and memory
of aligning and projecting, in one process on one core.
"""

import argparse
import gzip
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from fusejax.data.token_bytes import Tokenizer, token_bytes
from fusejax.fusion.alignment import align
from fusejax.fusion.projection import project
from fusejax.fusion.vocabulary import VocabularyMap

BATCH = 256
"""Answers projected at a time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("answers", type=Path)
    parser.add_argument("--examples", type=int, default=94_539)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--top", type=int, default=10)
    args = parser.parse_args()
    source, target = (AutoTokenizer.from_pretrained(each) for each in (args.source, args.target))
    with gzip.open(args.answers, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["response"] for line in file]

    clock = Clock()
    vocabulary = VocabularyMap.between(source, target, {source.eos_token_id: target.eos_token_id})
    print(
        f"map of {len(vocabulary.table):,} tokens: {vocabulary.same:,} the same bytes, {vocabulary.first:,} the first "
        f"token, {vocabulary.special} special, {vocabulary.dropped:,} dropped; {clock}"
    )
    pool = list(cut(source, target, texts, args.tokens))
    rng = np.random.default_rng(0)
    spoken = np.concatenate([tokens for tokens, *_ in pool])
    answers = [(*answer, *distributions(answer[0], spoken, args.top, rng)) for answer in pool]
    places = np.array([len(ends) for _, ends, *_ in pool]), np.array([len(ends) for *_, ends in pool])
    print(
        f"{len(pool):,} different answers of {places[0].mean() - 1:.0f} source and {places[1].mean() - 1:.0f} target "
        "tokens on average"
    )

    clock, total, paired = Clock(), 0, 0
    for start in range(0, args.examples, BATCH):
        batch = [answers[i % len(answers)] for i in range(start, min(start + BATCH, args.examples))]
        *_, mass = project_all(batch, vocabulary.table, args.top)
        total, paired = total + sum(len(answer[3]) for answer in batch), paired + len(mass)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{args.examples:,} answers, {total:,} places: {paired / total:.1%} have a row\n"
        f"aligned and projected in {clock}, {clock.cpu / total * 1e6:.2f} us a place; peak of memory {peak:.2f} GiB"
    )


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    @property
    def cpu(self) -> float:
        return time.process_time() - self._cpu

    def __str__(self) -> str:
        return f"{time.perf_counter() - self._wall:.1f} s ({self.cpu:.1f} s of a core)"


def cut(
    source: Tokenizer, target: Tokenizer, texts: list[str], size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Tokens and ends of answers under source and target; each `size` tokens of the source, the last one's turn end."""
    tables = token_bytes(source), token_bytes(target)
    joined = source("\n\n".join(texts), add_special_tokens=False, verbose=False)["input_ids"]
    for start in range(0, len(joined) - size, size):
        pieces = [tables[0][token] for token in joined[start : start + size]]
        try:
            text = b"".join(piece or b"" for piece in pieces).decode()
        except UnicodeDecodeError:  # cut within a character
            continue
        found = []
        for tokenizer, table in zip((source, target), tables, strict=True):
            tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
            sizes = [len(table[token] or b"") for token in tokens]
            found += [np.array([*tokens, tokenizer.eos_token_id]), np.cumsum([0, *sizes])]
        if found[1][-1] == found[3][-1]:
            yield found[0], found[1], found[2], found[3]


def distributions(
    tokens: np.ndarray, spoken: np.ndarray, top: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log-probabilities, as `AnswerDistributions` has them; the real token is mostly the likeliest."""
    ids = rng.choice(spoken, (len(tokens), top))
    ids[np.arange(len(tokens)), np.minimum(rng.geometric(0.6, len(tokens)) - 1, top - 1)] = tokens
    probs = -np.sort(-rng.dirichlet(np.full(top + 1, 0.3), len(tokens)), axis=1)[:, :top]
    return ids.astype(np.uint32), np.log(np.maximum(probs, 1e-7)).astype(np.float16)


def project_all(batch: list[tuple], table: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The places of several answers that have a row, together."""
    ids, top, after, afterwards = [], [], [], []
    for tokens, ends, target_tokens, target_ends, top_ids, top_logprobs in batch:
        rows = align(ends, target_ends)
        places = np.flatnonzero(rows >= 0)
        rows = rows[places]
        ids.append(top_ids[rows])
        top.append(top_logprobs[rows])
        after.append(tokens[rows])
        afterwards.append(target_tokens[places])
    joined = map(np.concatenate, (ids, top, after, afterwards))
    return project(*joined, table, k, "renormalize")


if __name__ == "__main__":
    main()
