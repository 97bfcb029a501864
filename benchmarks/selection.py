"""How long the stage `select` takes on a whole data set's scored answers, and how much memory.

    python -m benchmarks.selection [--answers 1600000] [--characters 1500]

Makes `scores/*.parquet` of four sources with rewards that tie, verdicts, cut and empty answers, in the recipe's mix of
domains, 12 answers a prompt, then runs the stage in a process of its own and reads that
process's peak of resident memory (VmHWM). Everything counts: hashing the inputs, reading, choosing, fetching the texts
of the chosen answers, and writing.

Measured on two cores shared with other work, with Polars 2.1: 1,600,000 answers (2.4 GB of text) in 12 s at a load of
two, 47 s at a load of nine; peak memory 1.1 to 1.2 GB. Files that another program wrote in larger
groups of rows than `store.ROWS_A_GROUP` take more.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from etils import epath

from benchmarks.process import alone
from benchmarks.training.worker import peak_of_process
from data_pipeline import stage_files
from data_pipeline.config import PipelineConfig

SOURCES = ("gemma", "mistral", "qwen", "llama")
DOMAINS = {"instruction": 0.51, "math": 0.33, "code": 0.10, "chinese": 0.06}
ANSWERS_A_PROMPT = 12
LONGEST = 16_000
"""Characters of an answer, at most."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=1_600_000)
    parser.add_argument("--characters", type=int, default=1500, help="mean length of an answer")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder)
        alone(make, output, args.answers, args.characters)
        size = sum(file.stat().st_size for file in (output / "scores").iterdir())
        print(f"{args.answers:,} answers in {size / 1e9:.2f} GB of Parquet, {os.cpu_count()} cores", flush=True)
        alone(measure, output)


def make(output: Path, answers: int, characters: int) -> None:
    """`prompts.parquet` and `scores/`, seeded."""
    random = np.random.default_rng(0)
    count = answers // ANSWERS_A_PROMPT
    domains = random.choice(list(DOMAINS), size=count, p=list(DOMAINS.values()))
    ids = [f"{domain}-{number:032x}" for number, domain in enumerate(domains)]
    prompts = pl.DataFrame({"id": ids, "dataset": [f"{domain}-set" for domain in domains], "domain": domains})
    question = [[{"role": "user", "content": "x" * 800}]] * count
    prompts = prompts.with_columns(
        messages=pl.Series(question), answer=pl.lit("7"), tests=pl.lit(None, pl.List(pl.String))
    )
    root = epath.Path(output)
    stage_files.write_parquet(prompts, root / "prompts.parquet")
    pool = text_pool(random)
    per_source = ANSWERS_A_PROMPT // len(SOURCES)
    for name in SOURCES:
        rows = count * per_source
        lengths = answer_lengths(random, rows, characters)
        starts = random.integers(0, len(pool) - LONGEST, rows)
        texts = pl.Series([pool[a : a + n] for a, n in zip(starts, lengths, strict=True)])
        texts = texts.scatter(random.integers(0, rows, rows // 500), "")
        frame = pl.DataFrame(
            {
                "prompt_id": pl.Series(ids).gather(np.repeat(np.arange(count), per_source)),
                "source": [name] * rows,
                "sample_index": np.tile(np.arange(per_source), count),
                "text": texts,
                "finish_reason": random.choice(["stop", "length", "error"], rows, p=[0.97, 0.025, 0.005]),
                # In bfloat16 steps, as a reward model gives them: they tie.
                "reward": random.integers(100, 400, rows) / 2048,
                "verdict": random.choice(["correct", "wrong", "unknown"], rows, p=[0.6, 0.35, 0.05]),
                "extracted": ["7"] * rows,
                "detail": ["same_text"] * rows,
                "truncated": random.random(rows) < 0.01,
                "degenerate": random.random(rows) < 0.01,
            }
        )
        stage_files.write_parquet(frame, root / "scores" / f"{name}.parquet")


def measure(output: Path) -> None:
    """Runs the stage and prints its seconds and this process's peak memory."""
    from data_pipeline.selection import stage as select

    reward = "builtins:len"  # Named only: nothing is scored here.
    config = PipelineConfig.model_validate(
        {
            "output_dir": str(output),
            "prompts": [{"path": "unused.jsonl", "dataset": f"{d}-set", "domain": d} for d in DOMAINS],
            "sources": [{"name": name, "model": name} for name in SOURCES],
            "scorers": {domain: {"reward": reward} for domain in ("instruction", "math", "code")},
            "selection": {"chinese": {"source": "qwen"}},
        }
    )
    started = time.monotonic()
    select.run(config)
    seconds = time.monotonic() - started
    print(f"select: {seconds:.1f} s, peak memory {peak_of_process() / 1e9:.2f} GB", flush=True)


def text_pool(random: np.random.Generator) -> str:
    """Random words: slices of it at random places compress as real text does, by half or so."""
    words = ["".join(random.choice(list("etaoinshrdlu"), random.integers(2, 9))) for _ in range(5000)]
    return " ".join(random.choice(words, 4_000_000))


def answer_lengths(random: np.random.Generator, count: int, characters: int) -> np.ndarray:
    """Of `count` answers, in characters, `characters` on average."""
    return np.minimum(random.lognormal(np.log(characters) - 0.2, 0.63, count), LONGEST).astype(int)


if __name__ == "__main__":
    main()
