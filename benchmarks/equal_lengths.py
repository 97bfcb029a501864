"""Pairs and examples a second where packing gains nothing: every sequence has 128 + 384 tokens.

    python -m benchmarks.equal_lengths [key.path=value ...] [--turns 3] [--tasks sft dpo] [--sequences 4 16]

Ours against TRL, Tunix and a plain PyTorch loop, on the CPU in float32, each in its own process, in turn. TRL and Tunix
run the reference beside each DPO step, as they do by default; ours and the plain loop run it once, before, which is
told apart. `key.path=value` are settings of our run.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.training.case import SMALL, random_batches, write_case, write_model
from benchmarks.training.compare import PEERS, about, ours, run_in_turn, same_losses, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", default=["sft", "dpo"], choices=["sft", "dpo"])
    parser.add_argument("--sequences", nargs="+", type=int, default=[4, 16])
    parser.add_argument("--trainers", nargs="+", default=[peer.name for peer in PEERS])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--devices", type=int, default=1, help="that our run makes of the CPU")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    peers = tuple(peer for peer in PEERS if peer.name in args.trainers)
    trainers = (ours(*args.overrides, devices=args.devices), *peers)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), SMALL)
        for task in args.tasks:
            for sequences in args.sequences:
                examples = sequences // 2 if task == "dpo" else sequences
                batches = random_batches(
                    SMALL["vocab_size"], steps=args.steps, examples=examples, prompt=128, answer=384
                )
                write_case(Path(folder), task, batches, max_length=512, passes=2)
                results = run_in_turn(trainers, Path(folder), turns=args.turns)
                same_losses(results, tolerance=1e-3)
                unit = "pairs/s" if task == "dpo" else "examples/s"
                print(f"\n{task}, {sequences} sequences of 512 a step")
                tokens = 512 * sequences * args.steps
                print(table(results, {unit: examples * args.steps, "tokens/s": tokens}), flush=True)
    print(about(results))


if __name__ == "__main__":
    main()
