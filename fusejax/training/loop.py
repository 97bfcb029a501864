"""A training run from configuration to last checkpoint. `train` reads as the story of the run.

A run may die at any moment: the same command goes on from its last checkpoint and ends bit-identical to a run that
never died, because the data order is a function of the step number alone and everything else is in the checkpoint.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from fusejax.cli import UserError, note
from fusejax.config import TrainConfig
from fusejax.data.chat import load_tokenizer
from fusejax.data.examples import Tokenized, tokenize
from fusejax.data.loader import StepBatch
from fusejax.data.packing import num_steps
from fusejax.data.records import Shards, open_shards
from fusejax.distributed.mesh import make_mesh
from fusejax.files import check_writable, write_text
from fusejax.models import huggingface
from fusejax.training import tokens
from fusejax.training.batches import Batches
from fusejax.training.checkpoints import Checkpoints, complete_steps
from fusejax.training.identity import claim, data_identity
from fusejax.training.metrics import MetricsLog
from fusejax.training.optimizer import make_schedule
from fusejax.training.programs import Programs
from fusejax.training.reference import Reference, references
from fusejax.training.start import StartingModel, fingerprint
from fusejax.training.state import Params, TrainState
from fusejax.training.step import Microbatch, means


def train(config: TrainConfig) -> None:
    """Runs `config` to its end, from wherever an earlier attempt stopped.

    Raises:
      UserError: the model, the data or `output_dir` cannot be what the configuration says; or the run diverged.
    """
    output_dir = Path(config.output_dir)
    _check_folders(config)
    resumes = bool(complete_steps(output_dir))
    # A run goes on with its own copy of architecture and tokenizer, whatever became of where it started.
    model = StartingModel(str(output_dir.absolute() / "model") if resumes else config.model)
    tokenizer = load_tokenizer(model.directory)
    mesh = make_mesh(config.mesh)

    shards = {split: _open(config, split, path) for split, path in config.data if path is not None}
    identity = data_identity(config, tokenizer, **{split: records.fingerprint for split, records in shards.items()})
    claim(output_dir, config, identity, resumes=resumes)
    if not resumes:
        _keep_model_files(model.directory, output_dir / "model")
    _note_long(config, model.directory)
    data = {
        split: _tokenize(config, split, records, tokenizer, identity, resumes=resumes)
        for split, records in shards.items()
    }
    model.check_tokens(max(int(tokenized.tokens.max()) for tokenized in data.values()))
    steps = num_steps(len(data["train"]), config.batch_size, config.epochs)
    steps = min(steps, config.max_steps or steps)
    _write_rejected(output_dir / "rejected.jsonl", data)
    with Checkpoints(output_dir, keep=config.checkpoint.keep) as checkpoints:
        first_step = max(checkpoints.steps(), default=0)
        if first_step == steps:
            note(f"{output_dir} is complete: {steps} steps")
            return
        programs = Programs(config, model.config, mesh, num_steps=steps)
        batches = Batches(config, mesh, data, rows=programs.rows)
        if first_step:
            note(f"going on after step {first_step} of {steps}")
            # The starting model, if its reference pass is missing, is gone again when the checkpoint is read.
            found = _references(config, identity, programs, lambda: _load_start(config, mesh), batches, data)
            state = checkpoints.restore(programs.state)
        else:
            params = _load_start(config, mesh)
            found = _references(config, identity, programs, lambda: params, batches, data)
            state = programs.init_state(params)
        _run_steps(config, programs, state, batches, found, checkpoints, steps)
        checkpoints.wait()
        note(f"{output_dir}: {steps} steps done, best checkpoint {checkpoints.best_step()}")


def _run_steps(
    config: TrainConfig,
    programs: Programs,
    state: TrainState,
    batches: Batches,
    found: dict[str, Reference],
    checkpoints: Checkpoints,
    steps: int,
) -> None:
    """Takes `state` from its step to step `steps`, logging every step and saving as configured."""
    learning_rates = jax.device_get(jax.vmap(make_schedule(config.optimizer, steps))(jnp.arange(steps)))
    accumulator = programs.zeros()
    first_step = int(state.step)

    def put(split: str, rows: Mapping[str, np.ndarray]) -> Microbatch:
        return batches.put({**rows, **found[split].at(rows["pair_ids"])} if found else rows)

    def evaluation(params: Params) -> dict[str, float]:
        """The means of the losses and rewards over the evaluation data, each named `eval_*`; {} without such data."""
        if config.data.eval is None:
            return {}
        sums = [programs.evaluate(params, put("eval", rows)) for rows in batches.once("eval")]
        totals = jax.tree.map(lambda *values: sum(map(float, values)), *jax.device_get(sums))
        return {f"eval_{name}": value for name, value in means(totals).items()}

    with MetricsLog(Path(config.output_dir), start_step=first_step, num_steps=steps, title=config.task) as log:
        pending: tuple[StepBatch, Any] | None = None

        def write(batch: StepBatch, metrics: Any, extra: dict[str, float] | None = None) -> None:
            """Waits for a step's metrics and logs them."""
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            log.write(
                {
                    "step": batch.step + 1,
                    "epoch": batch.epoch,
                    **values,
                    "learning_rate": float(learning_rates[batch.step]),
                    "examples": batch.examples,
                    "tokens": batch.tokens,
                    "target_tokens": batch.target_tokens,
                }
                | (extra or {})
            )

        for batch in batches.train(first_step, steps):
            with jax.transfer_guard("disallow"):  # what is copied, is copied on purpose
                for rows in batch.microbatches:
                    accumulator = programs.accumulate(state.params, accumulator, put("train", rows))
                state, accumulator, metrics = programs.apply(state, accumulator)
            # Metrics are fetched a step late: the devices already work on the next step while the host waits.
            if pending:
                write(*pending)
            pending = batch, metrics
            if (batch.step + 1) % config.checkpoint.every_steps == 0 or batch.step + 1 == steps:
                scores = evaluation(state.params)
                write(*pending, scores)
                pending = None
                checkpoints.save(state, scores)


def _check_folders(config: TrainConfig) -> None:
    """Finds out before any slow work that the run can be written."""
    check_writable(Path(config.output_dir), "output_dir")
    if config.preference and config.preference.reference and not Path(config.preference.reference).exists():
        check_writable(Path(config.preference.reference).parent, "preference.reference: the folder")


def _open(config: TrainConfig, split: str, path: str) -> Shards:
    records = open_shards(path)
    if records.kind != config.task:
        raise UserError(f"data.{split} {path} holds examples for {records.kind}, but the task is {config.task}")
    return records


def _note_long(config: TrainConfig, directory: Path) -> None:
    limit = huggingface.read_json(directory / "config.json").get("max_position_embeddings")
    if isinstance(limit, int) and config.max_length > limit:
        note(f"note: max_length {config.max_length} is beyond the model's max_position_embeddings, {limit}")


def _load_start(config: TrainConfig, mesh: Mesh) -> Params:
    """The starting model's parameters; the first attempt's fingerprint of them is kept, and holds for all later ones.

    Raises:
      UserError: they cannot be loaded, or are no longer those that the run started from.
    """
    params = StartingModel(config.model).load(mesh, dtype=config.dtype.params)
    kept, found = Path(config.output_dir) / "model" / "fingerprint", fingerprint(params)
    if not kept.exists():
        write_text(kept, found)
    elif kept.read_text() != found:
        raise UserError(
            f"model {config.model} is not what {config.output_dir} started from, and that is needed to compute the "
            "reference log-probabilities again; bring it or the reference sidecar back"
        )
    return params


def _references(
    config: TrainConfig,
    identity: dict[str, str],
    programs: Programs,
    load_start: Callable[[], Params],
    batches: Batches,
    data: dict[str, Tokenized],
) -> dict[str, Reference]:
    """The reference pass, or its sidecar; nothing for a task without preferences."""
    if config.preference is None:
        return {}
    output_dir = Path(config.output_dir)
    made_from = {
        "model": (output_dir / "model" / "fingerprint").read_text(),
        "compute dtype": config.dtype.compute,
        **identity,
        **{f"{split} tokens": tokenized.fingerprint for split, tokenized in data.items()},
    }
    return references(
        Path(config.preference.reference or output_dir / "reference.npz"),
        made_from,
        programs,
        load_start,
        batches,
        {split: len(tokenized) for split, tokenized in data.items()},
    )


def _tokenize(
    config: TrainConfig,
    split: str,
    records: Shards,
    tokenizer: PreTrainedTokenizerBase,
    identity: dict[str, str],
    *,
    resumes: bool,
) -> Tokenized:
    """The tokens of an earlier attempt at this run, or new ones."""
    path = Path(config.output_dir) / "tokens" / f"{split}.npz"
    try:
        tokenized = tokens.load(path, identity)
    except UserError:
        if resumes:  # new tokens might be others
            raise
        tokenized = None
    if tokenized is None:
        note(f"tokenizing {records.name}")
        tokenized = tokenize(records, tokenizer, max_length=config.max_length, max_prompt_length=config.prompt_limit)
        tokens.save(path, identity, tokenized)
    note(f"{split}: {tokenized.summary()}")
    return tokenized


def _write_rejected(path: Path, data: Mapping[str, Tokenized]) -> None:
    """The examples that are not trained on, as JSON lines with their reasons."""
    lines = [
        json.dumps({"split": split, "id": each.id, "reason": each.reason, "detail": each.detail}, ensure_ascii=False)
        for split, tokenized in data.items()
        for each in tokenized.rejected
    ]
    write_text(path, "".join(line + "\n" for line in lines))


def _keep_model_files(source: Path, target: Path) -> None:
    """Copies what an export needs beside the weights, so that the run's folder is complete in itself."""
    if target.exists():
        if source.samefile(target):
            raise UserError(f"model {source} lies where the run keeps its copy; choose another output_dir")
        shutil.rmtree(target)
    target.mkdir(parents=True)
    huggingface.copy_tokenizer(source, target)
    shutil.copy(source / "config.json", target / "config.json")
