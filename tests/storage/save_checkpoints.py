"""A process to be killed: saves checkpoint 1 and, when told to, checkpoint 2; each holds its number everywhere."""

import sys

import jax.numpy as jnp

from fusejax.training.checkpoints import Checkpoints
from fusejax.training.state import TrainState


def state(step: int) -> TrainState:
    params = {f"w{i}": jnp.full((64, 64), step, jnp.float32) for i in range(4)}
    return TrainState(jnp.asarray(step, jnp.int32), params, params)


def main() -> None:
    with Checkpoints(sys.argv[1], keep=3) as checkpoints:
        checkpoints.save(state(1), {})
        checkpoints.wait()
        print("ready", flush=True)
        sys.stdin.readline()
        checkpoints.save(state(2), {})
        checkpoints.wait()
        print("done", flush=True)


if __name__ == "__main__":
    main()
