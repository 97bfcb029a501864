"""How fast the data pipeline's shards are written and read whole, and how much memory that takes.

    python -m benchmarks.shards [--records 200000] [--characters 1500] [--kinds sft dpo] [--turns 3]

Records hold a prompt of 800 characters and answers of lengths as real ones have. `write` is what the stage of that name
does once it has the records: encoding, eight files, their hashes, the manifest. `open` checks every hash; `read`
decodes every record, in order. MB are those of the encoded records, before ArrayRecord compresses them. Files lie in
the page cache. Writing and reading are processes of their own; seconds are the least of the turns.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.process import about, alone, forget_peak
from benchmarks.selection import answer_lengths, text_pool
from benchmarks.training.worker import peak_of_process
from fusejax.data.records import (
    Format,
    Kind,
    Message,
    PreferencePair,
    Record,
    SFTExample,
    encode,
    open_shards,
    write_shards,
)

SHARDS = 8
FORMATS: tuple[Format, ...] = ("arrayrecord", "tfrecord")


@dataclasses.dataclass(frozen=True)
class Measured:
    what: str
    seconds: float
    before: int
    """Bytes of memory held before, libraries and, for `write`, the records."""
    peak: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--characters", type=int, default=1500, help="mean length of an answer")
    parser.add_argument("--kinds", nargs="+", default=["sft", "dpo"], choices=["sft", "dpo"])
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    print(f"{args.records:,} records in {SHARDS} shards; {about('array_record', 'google-crc32c', 'protobuf')}")
    print(f"{'':31}{'seconds':>9}{'records/s':>11}{'MB/s':>8}{'GB before':>11}{'peak':>7}")
    for kind in args.kinds:
        size = alone(encoded_bytes, kind, args.records, args.characters)
        for format in FORMATS:
            turns = [turn(kind, format, args.records, args.characters) for _ in range(args.turns)]
            on_disk = turns[0][0]
            for same in zip(*(measured for _, measured in turns), strict=True):
                least = min(same, key=lambda each: each.seconds)
                print(
                    f"{kind} {format:11} {on_disk / 1e9:4.2f} GB  {least.what:6}{least.seconds:9.1f}"
                    f"{args.records / least.seconds:11,.0f}{size / 1e6 / least.seconds:8.0f}"
                    f"{least.before / 1e9:11.2f}{max(each.peak for each in same) / 1e9:7.2f}",
                    flush=True,
                )


def turn(kind: Kind, format: Format, count: int, characters: int) -> tuple[int, list[Measured]]:
    """Bytes of the files, and what was measured of each thing done."""
    with tempfile.TemporaryDirectory() as folder:
        written = alone(write, folder, kind, format, count, characters)
        return sum(file.stat().st_size for file in Path(folder).glob(f"*.{format}")), [written, *alone(read, folder)]


def write(folder: str, kind: Kind, format: Format, count: int, characters: int) -> Measured:
    records = list(make(kind, count, characters))
    before, started = forget_peak(), time.perf_counter()
    write_shards(folder, "train", records, kind=kind, format=format, num_shards=SHARDS, manifest={})
    return Measured("write", time.perf_counter() - started, before, peak_of_process())


def read(folder: str) -> list[Measured]:
    before, started = forget_peak(), time.perf_counter()
    shards = open_shards(f"{folder}/train")
    opened = Measured("open", time.perf_counter() - started, before, peak_of_process())
    before, started = forget_peak(), time.perf_counter()
    for i in range(len(shards)):
        shards[i]
    return [opened, Measured("read", time.perf_counter() - started, before, peak_of_process())]


def encoded_bytes(kind: Kind, count: int, characters: int) -> int:
    return sum(len(encode(record)) for record in make(kind, count, characters))


def make(kind: Kind, count: int, characters: int) -> Iterator[Record]:
    """Seeded records."""
    random = np.random.default_rng(0)
    pool = text_pool(random)
    answers = 2 if kind == "dpo" else 1
    lengths = answer_lengths(random, count * answers, characters).tolist()
    starts = random.integers(0, len(pool) - max(lengths), (count, 1 + answers)).tolist()
    for i, (question, *places) in enumerate(starts):
        prompt: Message = {"role": "user", "content": pool[question : question + 800]}
        turns: list[Message] = [
            {"role": "assistant", "content": pool[place : place + lengths[i * answers + k]]}
            for k, place in enumerate(places)
        ]
        common = {"id": f"instruction-{i:032x}", "dataset": "instruction-set", "domain": "instruction"}
        if kind == "sft":
            yield SFTExample(**common, source_model="gemma", messages=[prompt, *turns])
        else:
            chosen, rejected = ([turn] for turn in turns)
            yield PreferencePair(
                **common,
                source_model="gemma",
                prompt=[prompt],
                chosen=chosen,
                rejected=rejected,
                chosen_score=0.15,
                rejected_score=0.1,
            )


if __name__ == "__main__":
    main()
