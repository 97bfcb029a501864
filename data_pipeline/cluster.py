"""Blocks of work on a Ray cluster that may lose machines, and their results as they get ready.

Ray Data hands the blocks to a pool of actors, replaces actors that died, repeats their blocks, and pauses an actor
whose results have not been taken yet. It would repeat a block that kills its actor for ever, so attempts are counted.
It also identifies a block's results by their position, although another attempt may yield them in another order: so a
result may come twice, or not at all. The caller keeps the results; another pass does the blocks that are still missing.
"""

import functools
import logging
import multiprocessing
import os
import pickle
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data_pipeline.config import ActorsConfig, RayConfig
from fusejax.common.cli import UserError, note, one_line

try:
    import pyarrow as pa
    import ray
    import ray.data
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ModuleNotFoundError as error:
    raise UserError(f"engine ray: no module {error.name!r}; pip install 'fusejax[ray]'") from None

Work = Callable[[Any], Iterator[Any]]
"""Makes the results of a block. Blocks and results are pickled."""
ATTEMPTS = 3
"""How often a block is tried in one pass."""
STORE_SHARE = 0.25
"""Of the cluster's object store, for results not taken yet: half of Ray's default, since the blocks are there, too."""


def results(
    config: RayConfig,
    actors: ActorsConfig,
    step: str,
    make: Callable[[], Work],
    left: Callable[[], Sequence[Any]],
) -> Iterator[Any]:
    """The actors' results, in any order and perhaps twice; ends when no block is left.

    Args:
      config: where the cluster is.
      actors: how many, and the CPUs and GPUs that each reserves.
      step: for messages.
      make: called once in each actor; must be picklable.
      left: gives the blocks that are not done yet, less the results already taken; called before each pass.

    Raises:
      UserError: there is no such cluster, an actor raised it, or a whole pass found nothing more.
    """
    _connect(config.address, step, actors)
    blocks = left()
    while blocks:
        attempts = _attempts()
        found = 0
        try:
            for result in _found(_pipeline(actors, make, attempts, blocks)):
                if isinstance(result, UserError):
                    raise result
                yield result
                found += 1
        except ray.exceptions.RayError as error:
            # For example, results were on a machine that was lost.
            note(f"{step}: {type(error).__name__}: {one_line(error)}")
        blocks = left()
        if blocks and not found:
            raise UserError(
                f"{step}: no actor got anywhere; the last one ended with {ray.get(attempts.reason.remote())}"
            )
        if blocks:
            note(f"{step}: {len(blocks):,} blocks are not complete and are done again")


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


class _Attempts:
    """How often each block was begun, and why the last attempt that failed did."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()
        self._reason = "its process killed"

    def begin(self, number: int) -> bool:
        """Whether to go on with it."""
        self._begun[number] += 1
        return self._begun[number] <= ATTEMPTS

    def fail(self, reason: str) -> None:
        self._reason = reason

    def reason(self) -> str:
        return self._reason


def _attempts() -> Any:
    """The counter as an actor on this machine: if this one is lost, the whole run is."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(_Attempts).options(num_cpus=0, scheduling_strategy=here).remote()


def _pipeline(actors: ActorsConfig, make: Callable[[], Work], attempts: Any, blocks: Sequence[Any]) -> ray.data.Dataset:
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # It logs at length what is raised or retried here.
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.target_max_block_size = 1  # Each result is handed over at once.
    context.override_object_store_memory_limit_fraction = STORE_SHARE
    packed = [{"number": number, "block": pickle.dumps(block)} for number, block in enumerate(blocks)]
    return ray.data.from_items(packed, override_num_blocks=len(packed)).map_batches(
        _Actor,
        fn_constructor_args=(make, attempts),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(actors.actors, len(packed))),
        num_cpus=actors.cpus,
        num_gpus=actors.gpus,
    )


def _found(pipeline: ray.data.Dataset) -> Iterator[Any]:
    """Avoids `iter_rows`, whose threads outlive it and end the process with status 1 when they find Ray shut down."""
    for bundle in pipeline.iter_internal_ref_bundles():
        for block in bundle.blocks:
            for row in ray.get(block.ref).to_pylist():  # a block that was given up has no rows, and no column
                yield pickle.loads(row["result"])


class _Actor:
    """Holds the work, such as a model, from one block to the next."""

    def __init__(self, make: Callable[[], Work], attempts: Any):
        self._work, self._attempts = functools.cache(make), attempts

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        for row in rows.to_pylist():
            if not ray.get(self._attempts.begin.remote(row["number"])):
                continue
            try:
                for result in self._work()(pickle.loads(row["block"])):
                    yield _packed(result)
            except UserError as error:
                yield _packed(error)
            except Exception as error:  # The engine may be unusable now, so the next attempt gets a new process.
                traceback.print_exc()
                ray.get(self._attempts.fail.remote(f"{type(error).__name__}: {one_line(error)}"))
                for child in multiprocessing.active_children():
                    child.kill()
                os._exit(1)


def _packed(result: Any) -> pa.Table:
    return pa.table({"result": [pickle.dumps(result)]})
