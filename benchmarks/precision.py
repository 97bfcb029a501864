"""What parameters and moments in bfloat16 cost in fidelity, and save in memory.

    python -m benchmarks.precision [--steps 200] [--rates 5e-7 5e-6 5e-4]

A tiny model (0.7 million parameters, random, first rounded to bfloat16, so that all begin alike) is trained with SFT on
four batches of random tokens in turn, computed in bfloat16, once with every choice of dtypes, and once as if bfloat16
parameters were rounded to nearest. Of each run, beside the one with everything in float32:

    bytes      state and accumulated gradients, per parameter
    moved      share of the weights that are not what they were at the start
    along      how far the weights went in the direction in which float32's did: 1 is as far, 0 not at all
    apart      distance from float32's weights, relative to how far these went; rounding once to bfloat16 is one part
    spacing    distance from float32's weights, relative to that of neighbouring bfloat16 numbers (root mean squares)
    loss       of the last step; and the mean of its difference from float32's over all steps
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.training.case import SMALL, random_batches, write_case, write_model
from benchmarks.training.fusejax_steps import tokenized
from benchmarks.training.worker import Case
from fusejax.common.cli import load_config
from fusejax.config import TrainConfig
from fusejax.distributed.mesh import make_mesh
from fusejax.training import rounding
from fusejax.training.batches import Batches
from fusejax.training.programs import Programs
from fusejax.training.start import StartingModel

TINY: dict[str, Any] = SMALL | {
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "head_dim": 16,
}
Weights = list[np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rates", nargs="+", default=["5e-7", "5e-6", "5e-4"])
    args = parser.parse_args()

    def to_nearest(x: jax.Array, bits: jax.Array) -> jax.Array:
        return x.astype(jnp.bfloat16)

    choices: list[tuple[str, str, Callable[..., jax.Array]]] = [
        ("float32", "float32", rounding.stochastically_rounded),
        ("float32", "bfloat16", rounding.stochastically_rounded),
        ("bfloat16", "float32", rounding.stochastically_rounded),
        ("bfloat16", "bfloat16", rounding.stochastically_rounded),
        ("bfloat16", "float32", to_nearest),
    ]
    columns = (
        "rate",
        "params",
        "moments",
        "rounding",
        "bytes",
        "moved",
        "along",
        "apart",
        "spacing",
        "loss",
        "differs",
    )
    print("".join(f"{name:>11}" for name in columns))
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), TINY, "bfloat16")
        batches = random_batches(TINY["vocab_size"], steps=4, examples=8, prompt=16, answer=48)
        write_case(Path(folder), "sft", batches, max_length=64, passes=1)
        for rate in args.rates:
            exact: tuple[Weights, np.ndarray] | None = None
            for params, moments, how in choices:
                chosen = [f"dtype.params={params}", f"optimizer.moments={moments}", f"optimizer.learning_rate={rate}"]
                with mock.patch.object(rounding, "stochastically_rounded", how):
                    size, start, end, losses = trained(folder, args.steps, [*chosen, "dtype.compute=bfloat16"])
                exact = exact or (end, losses)
                name = "-" if params == moments == "float32" else "nearest" if how is to_nearest else "stochastic"
                found = [f"{value:.4g}" for value in (size, *compared(start, end, exact[0]))]
                differs = f"{np.abs(losses - exact[1]).mean():.1e}"
                row = [rate, params, moments, name, *found, f"{losses[-1]:.4f}", differs]
                print("".join(f"{value:>11}" for value in row), flush=True)


def trained(folder: str, steps: int, overrides: list[str]) -> tuple[float, Weights, Weights, np.ndarray]:
    """Bytes a parameter, the weights before and after the steps, and each step's loss."""
    case, config = Case(folder), load_config(TrainConfig, f"{folder}/train.yaml", overrides)
    mesh, model = make_mesh(config.mesh), StartingModel(case.model)
    programs = Programs(config, model.config, mesh, num_steps=steps)
    data = [tokenized(case, batch) for batch in case.batches]
    turns = [Batches(config, mesh, {"train": each}, rows_per_microbatch=programs.rows_per_microbatch) for each in data]
    params = model.load(mesh, dtype=config.dtype.params)
    start = weights(params)
    state, accumulator = programs.init_state(params), programs.zeros()
    losses = []
    for step in range(steps):
        turn = turns[step % len(turns)]
        [batch] = turn.train(0, 1)
        for rows in batch.microbatches:
            accumulator = programs.accumulate(state.params, *accumulator, turn.put(rows))
        state, metrics = programs.apply(state, accumulator)
        accumulator = programs.zeroed(*accumulator)
        losses.append(float(metrics["loss"]))
    held = jax.tree.leaves((state, accumulator.gradients))
    return sum(x.nbytes for x in held) / sum(x.size for x in start), start, weights(state.params), np.array(losses)


def weights(params: Any) -> Weights:
    return [np.asarray(x, np.float32) for x in jax.tree.leaves(params)]


def compared(start: Weights, end: Weights, exact: Weights) -> tuple[float, float, float, float]:
    """`moved`, `along`, `apart` and `spacing`, as above."""
    first, last, theirs = (np.concatenate([x.ravel() for x in each]) for each in (start, end, exact))
    way, their_way = last - first, theirs - first
    # bfloat16 has eight significant bits.
    spacing = np.exp2(np.floor(np.log2(np.maximum(np.abs(first), 2.0**-126))) - 7)
    along = way @ their_way / (their_way @ their_way)
    apart = np.linalg.norm(last - theirs) / np.linalg.norm(their_way)
    return (
        float(np.mean(last != first)),
        float(along),
        float(apart),
        float(np.sqrt(np.mean(np.square((last - theirs) / spacing)))),
    )


if __name__ == "__main__":
    main()
