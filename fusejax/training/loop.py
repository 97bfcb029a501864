"""A training run from configuration to last checkpoint. `train` reads as the story of the run.

A run may die at any moment: the same command goes on from its last checkpoint and ends bit-identical to a run that
never died, because the data order is a function of the step number alone and everything else is in the checkpoint.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from etils import epath
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from fusejax.common.cli import UserError, note, versions
from fusejax.common.files import absolute, check_writable, copy, is_remote, write_text
from fusejax.config import TrainConfig
from fusejax.data.chat import load_tokenizer
from fusejax.data.examples import Tokenized, tokenize
from fusejax.data.loader import StepBatch
from fusejax.data.packing import num_steps
from fusejax.data.records import Shards, open_shards
from fusejax.distributed.compiled import keep_compiled
from fusejax.distributed.hosts import Hosts, Stopped
from fusejax.distributed.mesh import make_mesh
from fusejax.models.huggingface import checkpoint as huggingface
from fusejax.training import tokens
from fusejax.training.batches import Batches
from fusejax.training.checkpoints import Checkpoints, complete_steps
from fusejax.training.identity import claim, data_identity
from fusejax.training.metrics import MetricsLog
from fusejax.training.optimizer import make_schedule
from fusejax.training.profile import Profile
from fusejax.training.programs import Programs
from fusejax.training.reference import Reference, references
from fusejax.training.start import StartingModel, fingerprint
from fusejax.training.state import Params, TrainState
from fusejax.training.step import Microbatch, means
from fusejax.training.throughput import Throughput, model_flops


def train(config: TrainConfig, hosts: Hosts | None = None) -> None:
    """Runs `config` to its end, from wherever an earlier attempt stopped.

    Args:
      config: of the run, the same on all hosts.
      hosts: from `fusejax.distributed.hosts.join`; by default this host is alone.

    Raises:
      UserError: the model, the data or `output_dir` cannot be what the configuration says; a checkpoint cannot be
        saved; or the run diverged.
      Stopped: SIGTERM came, and a checkpoint was saved.
    """
    hosts = hosts or Hosts()
    hosts.same("the configuration", config.model_dump_json())
    keep_compiled(epath.Path(config.output_dir))
    mesh = make_mesh(config.mesh)
    # Host 0 puts into the run's folder what all hosts then read there.
    identity = hosts.lead(lambda: _prepare(config))
    output_dir = epath.Path(config.output_dir)
    data = {split: _read_tokens(output_dir, split, identity, hosts) for split, path in config.data if path is not None}
    model = huggingface.read_config(output_dir / "model")
    steps = num_steps(len(data["train"]), config.batch_size, config.epochs)
    steps = min(steps, config.max_steps or steps)
    if config.profile and config.profile.start_step > steps:
        raise UserError(f"profile.start_step {config.profile.start_step} is beyond the run's {steps} steps")

    def is_regular(step: int) -> bool:
        return step % config.checkpoint.every_steps == 0 or step == steps

    with Checkpoints(output_dir, keep=config.checkpoint.keep, regular=is_regular) as checkpoints:
        hosts.same("which checkpoints there are", str(checkpoints.steps()))
        first_step = max(checkpoints.steps(), default=0)
        if first_step == steps:
            hosts.note(f"{output_dir} is complete: {steps} steps")
            return
        programs = Programs(config, model, mesh, num_steps=steps)
        batches = Batches(config, mesh, data, rows=programs.rows)
        if first_step:
            hosts.note(f"going on after step {first_step} of {steps}")
            # The starting model, if its reference pass is missing, is gone again when the checkpoint is read.
            found = _references(
                config, identity, programs, lambda: _load_start(config, mesh, hosts), batches, data, hosts
            )
            state = checkpoints.restore(programs.state)
        else:
            _note_shared(config, data["train"], hosts)
            params = _load_start(config, mesh, hosts)
            found = _references(config, identity, programs, lambda: params, batches, data, hosts)
            state = programs.init_state(params)
        _Steps(config, programs, batches, found, checkpoints, hosts, steps, is_regular).run(state)
        checkpoints.wait()
        hosts.note(f"{output_dir}: {steps} steps done, best checkpoint {checkpoints.best_step()}")


@dataclasses.dataclass
class _Steps:
    """The optimizer steps of a run, with all that they need."""

    config: TrainConfig
    programs: Programs
    batches: Batches
    references: dict[str, Reference]
    checkpoints: Checkpoints
    hosts: Hosts
    count: int
    is_regular: Callable[[int], bool]
    """Whether a checkpoint is due after a step."""

    def run(self, state: TrainState) -> None:
        """Takes `state` from its step to the last one, logging every step and saving as configured.

        Raises:
          Stopped: SIGTERM came, and a checkpoint was saved.
        """
        learning_rates = jax.device_get(
            jax.vmap(make_schedule(self.config.optimizer, self.count))(jnp.arange(self.count))
        )
        accumulator = self.programs.zeros()
        first_step = int(state.step)
        profile = Profile(self.config.profile, epath.Path(self.config.output_dir))
        with self._log(first_step) as log, profile:
            pending: tuple[StepBatch, Any] | None = None

            def write(batch: StepBatch, metrics: Any, extra: dict[str, float] | None = None) -> None:
                """Waits for a step's metrics and logs them."""
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                if log is None:
                    return
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

            for batch in self.batches.train(first_step, self.count):
                step = batch.step + 1
                stops = self.hosts.stops_after(step)
                self.checkpoints.check()
                profile.before(step)
                # What is copied, is copied on purpose; and a trace knows its steps.
                with jax.transfer_guard("disallow"), jax.profiler.StepTraceAnnotation("train", step_num=step):
                    for rows in batch.microbatches:
                        accumulator = self.programs.accumulate(state.params, accumulator, self._put("train", rows))
                    state, metrics = self.programs.apply(state, accumulator)
                    accumulator = self.programs.zeroed(accumulator)
                profile.after(step, metrics)
                # Metrics are fetched a step late: the devices already work on the next step while the host waits. But
                # not later, or `stops_after` would not know how far the other hosts have come.
                if pending:
                    write(*pending)
                pending = batch, metrics
                if stops or self.is_regular(step):
                    # An evaluation where none is due would take time that there may not be, and stay in the log.
                    scores = self._evaluate(state.params) if self.is_regular(step) else {}
                    write(*pending, scores)
                    pending = None
                    if log is not None:
                        log.flush()
                    self.checkpoints.save(state, scores)
                if stops and step < self.count:
                    self.checkpoints.wait()
                    raise Stopped(f"stopped by SIGTERM after step {step} of {self.count}; the same command goes on")

    def _log(self, first_step: int) -> contextlib.AbstractContextManager[MetricsLog | None]:
        if self.hosts.index > 0:
            return contextlib.nullcontext()
        return MetricsLog(
            self.config.output_dir,
            start_step=first_step,
            num_steps=self.count,
            title=self.config.task,
            throughput=_throughput(self.config, self.programs),
            texts=_texts(self.config),
        )

    def _put(self, split: str, rows: Mapping[str, np.ndarray]) -> Microbatch:
        return self.batches.put({**rows, **self.references[split].at(rows["pair_ids"])} if self.references else rows)

    def _evaluate(self, params: Params) -> dict[str, float]:
        """The means of the losses and rewards over the evaluation data, each named `eval_*`; {} without such data."""
        if self.config.data.eval is None:
            return {}
        sums = [self.programs.evaluate(params, self._put("eval", rows)) for rows in self.batches.once("eval")]
        totals = jax.tree.map(lambda *values: sum(map(float, values)), *jax.device_get(sums))
        return {f"eval_{name}": value for name, value in means(totals).items()}


def _throughput(config: TrainConfig, programs: Programs) -> Throughput:
    """With the FLOPs that the plan of the run counts: what a pair's sequences share is needed once."""
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(programs.params))
    a_token = model_flops(programs.model, parameters, config.attention_length, training=True)
    return Throughput(a_token * config.row_length / config.attention_length, list(programs.mesh.devices.flat))


def _texts(config: TrainConfig) -> dict[str, str]:
    """What TensorBoard shows beside the curves, as Markdown."""
    values = yaml.safe_dump(config.model_dump(), sort_keys=False)
    found = "\n".join(f"- {name} {version}" for name, version in versions().items())
    return {"configuration": f"```yaml\n{values}```", "versions": found}


def _prepare(config: TrainConfig) -> dict[str, str]:
    """Makes the run's folder: configuration, architecture and tokenizer, tokens; returns what the tokens came from."""
    output_dir = epath.Path(config.output_dir)
    _check_folders(config)
    resumes = bool(complete_steps(output_dir))
    # A run goes on with its own copy of architecture and tokenizer, whatever became of where it started.
    model = StartingModel(str(absolute(output_dir) / "model") if resumes else config.model)
    tokenizer = load_tokenizer(model.directory)
    shards = {split: _open(config, split, path) for split, path in config.data if path is not None}
    identity = data_identity(config, tokenizer, **{split: records.fingerprint for split, records in shards.items()})
    claim(output_dir, config, identity, resumes=resumes)
    if not resumes:
        _keep_model_files(model, output_dir / "model")
    _note_long(config, model)
    data = {
        split: _tokenize(config, split, records, tokenizer, identity, resumes=resumes)
        for split, records in shards.items()
    }
    model.check_tokens(max(int(tokenized.tokens.max()) for tokenized in data.values()))
    _write_rejected(output_dir / "rejected.jsonl", data)
    return identity


def _read_tokens(output_dir: epath.Path, split: str, identity: dict[str, str], hosts: Hosts) -> Tokenized:
    tokenized = tokens.load(output_dir / "tokens" / f"{split}.npz", identity)
    if tokenized is None:
        raise UserError(
            f"output_dir {output_dir}: host {hosts.index} does not find what host 0 wrote there; "
            "it must be in a place that all hosts share"
        )
    hosts.same(f"{output_dir / 'tokens'}, {split}", tokenized.fingerprint)
    return tokenized


def _check_folders(config: TrainConfig) -> None:
    """Finds out before any slow work that the run can be written."""
    check_writable(epath.Path(config.output_dir), "output_dir")
    if config.preference and config.preference.reference and not epath.Path(config.preference.reference).exists():
        check_writable(epath.Path(config.preference.reference).parent, "preference.reference: the folder")


def _open(config: TrainConfig, split: str, path: str) -> Shards:
    records = open_shards(path)
    if records.kind != config.task:
        raise UserError(f"data.{split} {path} holds examples for {records.kind}, but the task is {config.task}")
    return records


def _note_long(config: TrainConfig, model: StartingModel) -> None:
    limit = huggingface.read_json(model.directory / "config.json").get("max_position_embeddings")
    if isinstance(limit, int) and config.max_length > limit:
        note(f"note: max_length {config.max_length} is beyond the model's max_position_embeddings, {limit}")


def _note_shared(config: TrainConfig, tokenized: Tokenized, hosts: Hosts) -> None:
    share = tokenized.shared_lengths.sum() / tokenized.lengths.sum()
    if share >= 0.05 and not config.shares_tokens:
        length = round(config.row_length / (1 - share))
        length += -length % (512 if length > 512 else 128)  # blocks of fused kernels
        hosts.note(
            f"note: pairs share {share:.0%} of their tokens; packing.attention_length={length} computes them once"
        )


def _load_start(config: TrainConfig, mesh: Mesh, hosts: Hosts) -> Params:
    """The starting model's parameters; the first attempt's fingerprint of them is kept, and holds for all later ones.

    Raises:
      UserError: they cannot be loaded, or are no longer those that the run started from.
    """
    params = StartingModel(config.model).load(mesh, dtype=config.dtype.params)
    found = fingerprint(params)
    hosts.lead(lambda: _keep_fingerprint(config, found))
    return params


def _keep_fingerprint(config: TrainConfig, found: str) -> None:
    kept = epath.Path(config.output_dir) / "model" / "fingerprint"
    if not kept.exists():
        write_text(kept, found)
    elif kept.read_text() != found:
        raise UserError(
            f"model {config.model} is not what {config.output_dir} started from, and that is needed to compute the "
            "reference log-probabilities again; bring it or the reference sidecar back"
        )


def _references(
    config: TrainConfig,
    identity: dict[str, str],
    programs: Programs,
    load_start: Callable[[], Params],
    batches: Batches,
    data: dict[str, Tokenized],
    hosts: Hosts,
) -> dict[str, Reference]:
    """The reference pass, or its sidecar; nothing for a task without preferences."""
    if config.preference is None:
        return {}
    output_dir = epath.Path(config.output_dir)
    path = epath.Path(config.preference.reference or output_dir / "reference.npz")
    hosts.same(f"whether there is {path}", str(path.exists()))
    made_from = {
        "model": (output_dir / "model" / "fingerprint").read_text(),
        "compute dtype": config.dtype.compute,
        **identity,
        **{f"{split} tokens": tokenized.fingerprint for split, tokenized in data.items()},
    }
    sizes = {split: len(tokenized) for split, tokenized in data.items()}
    return references(path, made_from, programs, load_start, batches, sizes)


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
    path = epath.Path(config.output_dir) / "tokens" / f"{split}.npz"
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


def _write_rejected(path: epath.Path, data: Mapping[str, Tokenized]) -> None:
    """The examples that are not trained on, as JSON lines with their reasons."""
    lines = [
        json.dumps({"split": split, "id": each.id, "reason": each.reason, "detail": each.detail}, ensure_ascii=False)
        for split, tokenized in data.items()
        for each in tokenized.rejected
    ]
    write_text(path, "".join(line + "\n" for line in lines))


def _keep_model_files(model: StartingModel, target: epath.Path) -> None:
    """Copies what an export needs beside the weights, so that the run's folder is complete in itself."""
    if target.exists():
        if epath.Path(model.source) == target if is_remote(target) else model.directory.samefile(str(target)):
            raise UserError(f"model {model.source} lies where the run keeps its copy; choose another output_dir")
        target.rmtree()
    target.mkdir(parents=True)
    huggingface.copy_tokenizer(model.directory, target)
    copy(model.directory / "config.json", target / "config.json")
