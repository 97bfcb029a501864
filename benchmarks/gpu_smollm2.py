"""The example `examples/smollm2` on a GPU: what it learns there, and in what time.

    python -m benchmarks.gpu_smollm2 [--dtypes float32 bfloat16] [--held-out 20] [--overrides key=value ...]

Trains from `runs/smollm2/data`, which the example's first steps make, with the example's own settings but for the type
that it computes in: float32, as on CPUs, and bfloat16, which GPUs are fast in. Then asks transformers, as the example
does. The figures are those of the example's README.
"""

import argparse
import time
from pathlib import Path

import yaml

from examples.pretrained import pretrained
from examples.smollm2 import heldout
from examples.smollm2.results import table
from examples.smollm2.training import CONFIGS, OUTPUT, train
from fusejax.common.cli import UserError, note, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/smollm2-gpu"))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--held-out", type=int, help="pairs to ask about; by default all, and what SFT held out")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="key=value", help="of both runs' configurations")
    args = parser.parse_args()
    if not (OUTPUT / "data" / "dpo" / "manifest.json").exists():
        raise UserError(f"{OUTPUT}/data: no shards of pairs; python -m examples.smollm2 makes them")
    base = pretrained("SmolLM2-135M-Instruct")
    max_length = yaml.safe_load((CONFIGS / "dpo.yaml").read_text())["max_length"]
    held_out = heldout.read(OUTPUT / "data")
    if args.held_out:
        held_out = heldout.HeldOut(held_out.best[-args.held_out :], held_out.rejected[-args.held_out :])
    for dtype in args.dtypes:
        folder = args.output / dtype
        start = time.monotonic()
        models = train(base, folder, seed=0, overrides=(f"dtype.compute={dtype}", *args.overrides))
        trained = time.monotonic()
        results = heldout.measure(models, held_out, max_length=max_length)
        note(
            f"{dtype}: trained and exported in {trained - start:.0f} s, measured in {time.monotonic() - trained:.0f} s"
        )
        print(f"\ncomputed in {dtype}\n{table(results)}")
        for task in ("sft", "dpo"):
            print(f"{task}: {last_step(folder / task / 'metrics.jsonl')}", flush=True)


def last_step(metrics: Path) -> str:
    """As it was logged."""
    return metrics.read_text().splitlines()[-1]


if __name__ == "__main__":
    run(main)
