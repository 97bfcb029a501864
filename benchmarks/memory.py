"""The most memory that training holds, as the vocabulary grows, and as the rows of a microbatch do.

    python -m benchmarks.memory [key=value ...] [--task sft] [--words 32000 128000 256000] [--rows 1 2 4 8]

A process for each: two steps of `equal_lengths.py`'s model, with two layers, on 8 sequences of 512 tokens on the CPU.
`state` is what must be there: parameters, their gradients and two moments, 16 bytes a parameter. What is left over
should not grow with the vocabulary; the logits of one row of 512 tokens would be 2 KB a word, as would their gradient.
`program` is what the compiler plans for the step's largest program beside its arguments.
"""

import argparse
import tempfile
from pathlib import Path

import jax

from benchmarks.training.case import SMALL, random_batches, write_case, write_model
from benchmarks.training.compare import ours, run
from fusejax.common.cli import load_config
from fusejax.config import TrainConfig
from fusejax.distributed.mesh import make_mesh
from fusejax.training.programs import Programs
from fusejax.training.start import StartingModel

SEQUENCES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="sft", choices=["sft", "dpo"])
    parser.add_argument("--words", nargs="+", type=int, default=[32_000, 128_000, 256_000])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    cases = [(words, 1) for words in args.words] + [(args.words[0], rows) for rows in args.rows if rows > 1]
    print(f"{'words':>8}{'rows':>6}{'peak GB':>10}{'state GB':>10}{'left over':>11}{'program':>9}")
    for words, rows in cases:
        peak, state, program = (x / 1e9 for x in measure(args.task, words, rows, args.overrides))
        print(f"{words:8}{rows:6}{peak:10.2f}{state:10.2f}{peak - state:11.2f}{program:9.2f}", flush=True)


def measure(task: str, words: int, rows: int, overrides: list[str]) -> tuple[float, float, float]:
    """Bytes: the process's peak, the state, the program's temporary arrays."""
    overrides = [*overrides, f"packing.rows_per_device={rows}"]
    examples = SEQUENCES // 2 if task == "dpo" else SEQUENCES
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), {**SMALL, "vocab_size": words, "num_hidden_layers": 2})
        batches = random_batches(words, steps=1, examples=examples, prompt=128, answer=384)
        write_case(Path(folder), task, batches, max_length=512, passes=2)
        peak = run(ours(*overrides), Path(folder))["peak"]
        config = load_config(TrainConfig, f"{folder}/train.yaml", overrides)
        programs = Programs(config, StartingModel(config.model).config, make_mesh(config.mesh), num_steps=2)
    compiled = programs.accumulate.lower(programs.params, *programs.accumulator, programs.microbatch).compile()
    parameters = sum(x.size for x in jax.tree.leaves(programs.params))
    return peak, 16 * parameters, compiled.memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
    main()
