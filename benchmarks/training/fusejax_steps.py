"""Our own trainer's programs and loader, a step at a time. DPO with its reference pass before the first step.

python -m benchmarks.training.fusejax_steps CASE [key.path=value ...]
"""

import sys

import jax
import numpy as np

from benchmarks.training.worker import Case, Example, Report
from fusejax.common.cli import load_config
from fusejax.config import TrainConfig
from fusejax.data.examples import Tokenized
from fusejax.distributed.mesh import make_mesh
from fusejax.training.batches import Batches
from fusejax.training.programs import Programs
from fusejax.training.reference import Reference
from fusejax.training.start import StartingModel


def main() -> None:
    case, report = Case(sys.argv[1]), Report()
    config = load_config(TrainConfig, f"{sys.argv[1]}/train.yaml", sys.argv[2:])
    mesh = make_mesh(config.mesh)
    model = StartingModel(case.model)
    programs = Programs(config, model.config, mesh, num_steps=len(case.steps))
    data = [tokenized(case, batch) for batch in case.batches]
    # Each batch is a data set of its own, so that each step has the very examples that others' have.
    batches = [
        Batches(config, mesh, {"train": each}, rows_per_microbatch=programs.rows_per_microbatch) for each in data
    ]
    params = model.load(mesh, dtype=config.dtype.params)
    references = []
    if case.task == "dpo":
        found = [programs.reference(params, batches[0].put(rows)) for rows in batches[0].once("train")]
        jax.block_until_ready(found)  # compiled
        report.lap()
        references = [reference(programs, params, *each) for each in zip(batches, data, strict=True)]
        report.reference_seconds = report.lap()
    state, accumulator = programs.init_state(params), programs.zeros()
    jax.block_until_ready(accumulator)
    report.lap()
    for step in range(len(case.steps)):
        turn = step % len(batches)
        [batch] = batches[turn].train(0, 1)
        with jax.transfer_guard("disallow"):
            for rows in batch.microbatches:
                extra = references[turn].at(rows["pair_ids"]) if references else {}
                accumulator = programs.accumulate(state.params, *accumulator, batches[turn].put({**rows, **extra}))
            state, metrics = programs.apply(state, accumulator)
            accumulator = programs.zeroed(*accumulator)
        report.losses.append(float(jax.device_get(metrics["loss"])))
        report.seconds.append(report.lap())
    report.note = f"remat {config.remat}, {programs.rows_per_microbatch} rows of {config.row_length} at once"
    if config.shares_prefixes:
        report.note += f", for {config.attention_length} with what pairs share"
    device = jax.local_devices()[0]
    # On CPUs there are no statistics, on others no need of Tokamax.
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    report.print("jax", "flax", *["tokamax"] * (device.platform == "gpu"), peak=peak)


def tokenized(case: Case, batch: list[Example]) -> Tokenized:
    sequences = [(example["prompt"], example[which]) for example in batch for which in case.answers]
    lengths = [len(prompt) + len(answer) for prompt, answer in sequences]
    return Tokenized(
        kind=case.task,
        tokens=np.array([token for prompt, answer in sequences for token in prompt + answer], np.int32),
        loss_mask=np.array([i >= len(p) for p, a in sequences for i in range(len(p) + len(a))], bool),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        ids=[str(i) for i in range(len(batch))],
        rejected=[],
        changes={},
    )


def reference(programs: Programs, params, batches: Batches, data: Tokenized) -> Reference:
    found = Reference.empty(len(data))
    for rows in batches.once("train"):
        pair_ids, logprobs = jax.device_get(programs.reference(params, batches.put(rows)))
        found.fill(pair_ids, logprobs)
    return found


if __name__ == "__main__":
    main()
