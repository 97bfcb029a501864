"""Blocks of work on a Ray cluster that may lose machines, and their results as they get ready.

Ray Data hands the blocks to a pool of actors, starts those anew that died, has their blocks done again, and holds an
actor back whose results nobody took yet. It gives a block up after a few attempts, for one that kills whatever touches
it must not be tried for ever; and it knows a block's results by their number, though a second attempt may find them
in another order. So a result may come twice, or not at all: the caller keeps the results, and what it then still misses
is the next pass over the cluster.
"""

import functools
import logging
import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from data_pipeline.config import ActorsConfig, RayConfig
from fusejax.cli import UserError, note, one_line

try:
    import ray
    import ray.data
except ModuleNotFoundError as error:
    raise UserError(f"engine ray: no module {error.name!r}; pip install 'fusejax[ray]'") from None

Work = Callable[[Any], Iterator[Any]]
"""Makes the results of a block. Blocks and results are pickled."""
RETRIES = 3
"""Of a block, in one pass. They are soon spent on a machine whose loss is not noticed yet, for about 15 seconds."""


def results(
    config: RayConfig,
    actors: ActorsConfig,
    step: str,
    make: Callable[[], Work],
    left: Callable[[], Sequence[Any]],
) -> Iterator[Any]:
    """What the actors find, in any order and perhaps twice; over when nothing is left.

    Args:
      config: where the cluster is.
      actors: how many, and what each holds of its machine.
      step: for messages.
      make: called once in each actor, and pickled to get there.
      left: the blocks that are not done yet, by the results that were taken so far; asked before each pass.

    Raises:
      UserError: there is no such cluster, an actor raised it, or a whole pass found nothing.
    """
    _connect(config.address, step, actors)
    blocks = left()
    while blocks:
        found = 0
        try:
            for row in _pipeline(actors, make, blocks).iter_rows():
                result = pickle.loads(row["result"])
                if isinstance(result, UserError):
                    raise result
                yield result
                found += 1
        except ray.exceptions.RayError as error:
            # Such as results that lay on a machine when it was lost.
            note(f"{step}: {type(error).__name__}: {one_line(error)}")
        blocks = left()
        if blocks and not found:
            raise UserError(f"{step}: the actors ended {len(blocks):,} blocks without a result; see their output above")
        if blocks:
            note(f"{step}: {len(blocks):,} blocks were lost with their actors and are done again")


def _connect(address: str, step: str, actors: ActorsConfig) -> None:
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray.init(address, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"ray.address: no cluster to be had at {address!r}: {one_line(error)}") from None
    needed = {"CPU": actors.cpus, "GPU": actors.gpus}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(machine.get(kind, 0) >= count for kind, count in needed.items()) for machine in machines):
        note(f"{step}: waiting for a machine with {actors.cpus:g} CPUs and {actors.gpus:g} GPUs: the cluster has none")


def _pipeline(actors: ActorsConfig, make: Callable[[], Work], blocks: Sequence[Any]) -> ray.data.Dataset:
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # It tells of lost blocks at length, and goes on.
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = -1  # Which actors of ours lose, but never raise.
    context.target_max_block_size = 1  # Each result is handed over at once.
    packed = [{"block": pickle.dumps(block)} for block in blocks]
    return ray.data.from_items(packed, override_num_blocks=len(packed)).map_batches(
        _Actor,
        fn_constructor_args=(make,),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(actors.actors, len(packed))),
        num_cpus=actors.cpus,
        num_gpus=actors.gpus,
        max_restarts=-1,
        max_task_retries=RETRIES,
    )


class _Actor:
    """Holds the work, such as a model, from one block to the next."""

    def __init__(self, make: Callable[[], Work]):
        self._work = functools.cache(make)

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        for row in rows["block"]:
            try:
                for result in self._work()(pickle.loads(row.as_py())):
                    yield _packed(result)
            except UserError as error:
                yield _packed(error)
            except Exception:  # The engine may be beyond use, so the next attempt gets a process of its own.
                traceback.print_exc()
                for child in multiprocessing.active_children():
                    child.kill()
                os._exit(1)


def _packed(result: Any) -> pa.Table:
    return pa.table({"result": [pickle.dumps(result)]})
