"""A training run from configuration to last checkpoint; start reading at `train`.

A run may be killed at any moment: the same command resumes from its last checkpoint and ends bit-identical to an
uninterrupted run, because the data order depends on the step number alone and everything else is in the checkpoint.
SIGTERM drops the step or the evaluation under way (`fusejax.distributed.agreement`); the next attempt takes it again.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from fusejax.data.batch import Microbatch
from fusejax.data.chat import load_tokenizer, turn_end
from fusejax.data.examples import Tokenized
from fusejax.data.loader import StepBatch
from fusejax.data.packing import num_steps
from fusejax.distributed.agreement import Halt, Pace
from fusejax.distributed.compiled import keep_compiled
from fusejax.distributed.hosts import Hosts, Stopped
from fusejax.distributed.mesh import make_mesh
from fusejax.models.attention.splash import whole_blocks
from fusejax.models.decoder.config import language_model
from fusejax.models.huggingface import checkpoint as huggingface
from fusejax.models.huggingface.generation_config import named_ends
from fusejax.training.ahead import Ahead
from fusejax.training.batches import Batches
from fusejax.training.checkpoints import Checkpoints, complete_steps
from fusejax.training.goodput import Clock
from fusejax.training.identity import claim, data_identity
from fusejax.training.likelihoods import identity_of, open_likelihoods, with_likelihoods
from fusejax.training.metrics import MetricsLog
from fusejax.training.network import check_divides
from fusejax.training.optimizer import make_schedule
from fusejax.training.origin import keep_origin
from fusejax.training.profile import Profile
from fusejax.training.programs import Programs
from fusejax.training.reference import Reference, references
from fusejax.training.start import StartingModel, fingerprint
from fusejax.training.state import Params, TrainState
from fusejax.training.step import means
from fusejax.training.throughput import Throughput, model_flops
from fusejax.training.tokenizing import fusion_identity, missing, not_shared, open_data, read, tell, tokenize


def train(config: TrainConfig, hosts: Hosts | None = None, clock: Clock | None = None) -> None:
    """Runs `config` to its end, from wherever an earlier attempt stopped.

    Args:
      config: of the run, the same on all hosts.
      hosts: from `fusejax.distributed.hosts.join`; by default this host is alone.
      clock: says when this attempt began; by default now.

    Raises:
      UserError: the model, the data or `output_dir` cannot be what the configuration says; a checkpoint cannot be
        saved; or the run diverged.
      Stopped: SIGTERM came, and a checkpoint was saved.
    """
    hosts, clock = hosts or Hosts(), clock or Clock()
    hosts.same("the configuration", config.model_dump_json())
    output_dir = epath.Path(config.output_dir)
    keep_compiled(output_dir)
    mesh = make_mesh(config.mesh)
    # Host 0 puts into the run's folder what all hosts then read there.
    prepared = hosts.lead(lambda: _prepare(config, mesh))
    if not (output_dir / "run.yaml").exists():
        raise not_shared(output_dir, hosts.index, 0)
    model = huggingface.read_config(output_dir / "model")
    programs = Programs(config, model, mesh, weights=prepared.pop("weights"))
    with Ahead(programs, clock) as ahead:
        hosts.is_busy = ahead.is_busy
        with clock.phase("tokens"):
            if prepared["splits"]:
                ahead.compile(*_large_programs(config))
                tokenize(config, hosts=hosts, **prepared)
            data = read(config, prepared["identity"], hosts)
            hosts.lead(lambda: tell(config, data, vocab_size=model.vocab_size))
        _train(config, prepared["identity"], data, programs, ahead, hosts, clock)


def _train(
    config: TrainConfig,
    identity: dict[str, str],
    data: dict[str, Tokenized],
    programs: Programs,
    ahead: Ahead,
    hosts: Hosts,
    clock: Clock,
) -> None:
    """The run, once the data are tokens."""
    output_dir, mesh, vocab_size = epath.Path(config.output_dir), programs.mesh, programs.model.vocab_size
    steps = num_steps(len(data["train"]), config.batch_size, config.epochs)
    steps = min(steps, config.max_steps or steps)
    if config.profile and config.profile.start_step > steps:
        raise UserError(f"profile.start_step {config.profile.start_step} is beyond the run's {steps} steps")

    def is_regular(step: int) -> bool:
        return step % config.checkpoint.every_steps == 0 or step == steps

    def load_start() -> Params:
        with clock.phase("loading"):
            return _load_start(config, mesh, hosts)

    with Checkpoints(output_dir, keep=config.checkpoint.keep, regular=is_regular, clock=clock) as checkpoints:
        hosts.same("which checkpoints there are", str(checkpoints.steps()))
        first_step = max(checkpoints.steps(), default=0)
        if first_step == steps and not checkpoints.unevaluated():
            hosts.note(f"{output_dir} is complete: {steps} steps")
            return
        programs.set_steps(steps)
        ahead.compile(*_large_programs(config), "apply", "zeroed", *(["evaluate"] if config.data.eval else []))
        weights = "weights" in programs.microbatch
        batches = Batches(config, mesh, data, rows_per_microbatch=programs.rows_per_microbatch, weights=weights)
        if first_step:
            hosts.note(f"going on after step {first_step} of {steps}")
            # If the reference pass has to be repeated, the starting model is freed before the checkpoint is read.
            with clock.phase("reference"):
                found = _references(config, identity, programs, load_start, batches, data, hosts)
            with clock.phase("loading"):
                state = checkpoints.restore(programs.state, vocab_size=vocab_size)
        else:
            _note_shared(config, data["train"], hosts)
            params = load_start()
            with clock.phase("reference"):
                found = _references(config, identity, programs, lambda: params, batches, data, hosts)
            state = programs.init_state(params)
        try:
            with clock.phase("steps"):
                run_steps(state, config, programs, batches, found, checkpoints, hosts, steps, is_regular, clock)
            checkpoints.wait()
        except Stopped:
            hosts.note(clock.summary())
            raise
        hosts.note(clock.summary())
        hosts.note(f"{output_dir}: {steps} steps done, best checkpoint {checkpoints.best_step()}")


def _large_programs(config: TrainConfig) -> list[str]:
    """Those that do not depend on the number of steps and are used whatever the data, in the order of their use."""
    return [*(["reference"] if config.needs_reference and not _sidecar(config).exists() else []), "accumulate"]


def _sidecar(config: TrainConfig) -> epath.Path:
    """Where a run that needs a reference keeps it."""
    kept = config.preference and config.preference.reference
    return epath.Path(kept) if kept else epath.Path(config.output_dir) / "reference.npz"


def run_steps(
    state: TrainState,
    config: TrainConfig,
    programs: Programs,
    batches: Batches,
    reference: dict[str, Reference],
    checkpoints: Checkpoints,
    hosts: Hosts,
    last_step: int,
    is_regular: Callable[[int], bool],
    clock: Clock,
) -> None:
    """Trains from the step of `state` to `last_step`; logs every step, and saves where `is_regular` says so.

    Raises:
      UserError: as `train`.
      Stopped: SIGTERM came, and a checkpoint was saved.
    """

    def put(split: str, microbatches: Iterable[Microbatch], steps_done: int) -> Iterator[Microbatch]:
        for microbatch in microbatches:
            known = reference[split].at(microbatch["pair_ids"]) if reference else {}
            if config.needs_progress:
                known["progress"] = np.full((len(microbatch["tokens"]), 1), steps_done / last_step, np.float32)
            yield batches.put({**microbatch, **known})

    def evaluate(steps_done: int) -> dict[str, float]:
        with clock.phase("evaluation"):
            return _evaluate(programs, state.params, put("eval", batches.once("eval"), steps_done), pace)

    def comparable(scores: dict[str, float]) -> dict[str, float]:
        """What checkpoints are compared by. A loss that itself changes with the steps says nothing about them."""
        return {name: value for name, value in scores.items() if name != "eval_loss" or not config.needs_progress}

    learning_rates = jax.device_get(jax.vmap(make_schedule(config.optimizer, last_step))(jnp.arange(last_step)))
    accumulator = programs.zeros()
    first_step = int(state.step)
    unevaluated = checkpoints.unevaluated()
    agreement, pace = hosts.agreement, Pace(hosts.agreement)
    profile = Profile(config.profile, epath.Path(config.output_dir))
    logged = first_step - bool(unevaluated)
    with (
        _open_log(config, programs, hosts, logged, last_step, clock) as log,
        profile,
        _Reminder(config, hosts) as reminder,
    ):
        pending: tuple[StepBatch, Any] | None = None

        def entry(batch: StepBatch, metrics: Any) -> dict[str, float]:
            """Waits for a step's metrics."""
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            return _entry(batch, values, float(learning_rates[batch.step]))

        def write(line: Mapping[str, float], scores: Mapping[str, float] | None = None) -> None:
            if log is not None:
                log.write({**line, **(scores or {})})

        def flush() -> None:
            if log is not None:
                log.flush()

        try:
            if unevaluated:
                scores = evaluate(first_step)
                write(unevaluated, scores)
                flush()
                hosts.lead(lambda: checkpoints.set_metrics(first_step, comparable(scores)))
            for batch in batches.train(first_step, last_step):
                step = batch.step + 1
                checkpoints.check()
                profile.before(step)
                # Implicit transfers between host and devices raise; a profiler trace gets step numbers.
                with jax.transfer_guard("disallow"), jax.profiler.StepTraceAnnotation("train", step_num=step):
                    for microbatch in put("train", batch.microbatches, batch.step):
                        pace.start()
                        accumulator = programs.accumulate(state.params, *accumulator, microbatch)
                        pace.started(accumulator.sums["count"])
                    pace.start_update()
                    state, metrics = programs.apply(state, accumulator)
                    accumulator = programs.zeroed(*accumulator)
                    pace.started(metrics["loss"])
                profile.after(step, metrics)
                # Metrics are fetched one step late, so that the devices work on the next step while the host waits.
                if pending:
                    write(entry(*pending))
                pending = batch, metrics
                due = agreement.save_is_due()
                if due or is_regular(step):
                    # What is saved between regular steps is not evaluated: scores would stay in the log.
                    evaluates = is_regular(step) and config.data.eval is not None
                    scores = evaluate(step) if evaluates else {}
                    write(entry(*pending), scores)
                    pending = None
                    flush()
                    reminder.restart()
                    checkpoints.save(state, comparable(scores))
        except Halt:
            if pending:  # otherwise the last update is saved already
                line = entry(*pending)
                step = pending[0].step + 1
                evaluates = is_regular(step) and config.data.eval is not None
                if not evaluates:
                    write(line)
                flush()
                checkpoints.save(state, {}, unevaluated=line if evaluates else None)
            checkpoints.wait()
            raise Stopped(
                f"stopped by SIGTERM after step {int(state.step)} of {last_step}; the same command goes on"
            ) from None


def _open_log(
    config: TrainConfig, programs: Programs, hosts: Hosts, first_step: int, last_step: int, clock: Clock
) -> contextlib.AbstractContextManager[MetricsLog | None]:
    """The log of a run, which host 0 writes."""
    if hosts.index > 0:
        return contextlib.nullcontext()
    return MetricsLog(
        config.output_dir,
        start_step=first_step,
        num_steps=last_step,
        title=config.preference.loss if config.preference else config.task,
        throughput=_throughput(config, programs),
        clock=clock,
        texts=_texts(config),
    )


class _Reminder:
    """Asks all hosts to save `checkpoint.every_minutes` after the last checkpoint, by host 0's clock."""

    def __init__(self, config: TrainConfig, hosts: Hosts):
        self._minutes = config.checkpoint.every_minutes if hosts.index == 0 else None
        self._agreement = hosts.agreement
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "_Reminder":
        self.restart()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def restart(self) -> None:
        """To be called when a checkpoint is saved."""
        self.__exit__()
        if self._minutes is not None:
            self._timer = threading.Timer(60 * self._minutes, self._ask)
            self._timer.daemon = True
            self._timer.start()

    def _ask(self) -> None:
        with contextlib.suppress(ConnectionError):  # host 0 is gone, as other threads say
            self._agreement.ask("save")


def _entry(batch: StepBatch, metrics: dict[str, float], learning_rate: float) -> dict[str, float]:
    """A step's line in the log."""
    return {
        "step": batch.step + 1,
        "epoch": batch.epoch,
        **metrics,
        "learning_rate": learning_rate,
        "examples": batch.examples,
        "tokens": batch.tokens,
        "target_tokens": batch.target_tokens,
    }


def _evaluate(programs: Programs, params: Params, microbatches: Iterable[Microbatch], pace: Pace) -> dict[str, float]:
    """The means of the losses and rewards over the evaluation data, each named `eval_*`.

    Raises:
      Halt: the hosts stop, and none has got the result.
    """
    sums = []
    for microbatch in microbatches:
        pace.start()
        sums.append(programs.evaluate(params, microbatch))
        pace.started(sums[-1]["count"])
    pace.finish()
    totals = jax.tree.map(lambda *values: sum(map(float, values)), *jax.device_get(sums))
    return {f"eval_{name}": value for name, value in means(totals).items()}


def _throughput(config: TrainConfig, programs: Programs) -> Throughput:
    """Counts FLOPs as `fusejax plan` does: the shared prefix of an example counts once."""
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(programs.params))
    a_token = model_flops(programs.model, parameters, config.attention_length, training=True)
    return Throughput(a_token * config.row_length / config.attention_length, list(programs.mesh.devices.flat))


def _texts(config: TrainConfig) -> dict[str, str]:
    """What TensorBoard shows beside the curves, as Markdown."""
    values = yaml.safe_dump(config.model_dump(), sort_keys=False)
    found = "\n".join(f"- {name} {version}" for name, version in versions().items())
    return {"configuration": f"```yaml\n{values}```", "versions": found}


def _prepare(config: TrainConfig, mesh: Mesh) -> dict[str, Any]:
    """Makes the run's folder, with configuration, architecture and tokenizer.

    Returns:
      Arguments of `tokenize`: `splits` that have no tokens yet, `identity` of all, `stops`; and whether any examples
      have `weights`.
    """
    output_dir = epath.Path(config.output_dir)
    _check_folders(config)
    # Before the model, which may have to be downloaded.
    shards = open_data(config)
    resumes = bool(complete_steps(output_dir))
    # A resumed run uses its own copy of architecture and tokenizer, even if the starting model has changed.
    model = StartingModel(str(absolute(output_dir) / "model") if resumes else config.model)
    check_divides(model.config, mesh)
    tokenizer = load_tokenizer(model.directory)
    identity = data_identity(config, tokenizer, **{split: records.fingerprint for split, records in shards.items()})
    identity |= fusion_identity(config, shards)
    tables = open_likelihoods(config, {split: records.fingerprint for split, records in shards.items()})
    claim(output_dir, config, identity | identity_of(tables), resumes=resumes)
    if not resumes:
        _keep_model_files(model, output_dir / "model")
        keep_origin(config, model)
    _note_long(config, model)
    stops = named_ends(model.directory, tokenizer)
    _note_end(tokenizer, stops)
    return {
        "identity": identity,
        "stops": sorted(stops),
        "splits": missing(config, identity, resumes=resumes),
        "weights": any(records.weighted for records in shards.values()),
    }


def _check_folders(config: TrainConfig) -> None:
    """Finds out before any slow work that the run can be written."""
    check_writable(epath.Path(config.output_dir), "output_dir")
    if config.preference and config.preference.reference and not epath.Path(config.preference.reference).exists():
        check_writable(epath.Path(config.preference.reference).parent, "preference.reference: the folder")


def _note_long(config: TrainConfig, model: StartingModel) -> None:
    limit = language_model(huggingface.read_json(model.directory / "config.json")).get("max_position_embeddings")
    if isinstance(limit, int) and config.max_length > limit:
        note(f"note: max_length {config.max_length} is beyond the model's max_position_embeddings, {limit}")


def _note_end(tokenizer: PreTrainedTokenizerBase, stops: set[int]) -> None:
    end = turn_end(tokenizer, stops)
    if end is not None and end not in stops:
        note(
            f"note: answers end with {tokenizer.convert_ids_to_tokens(end)}, which the model's files do not name as an "
            "end; exports will"
        )


def _note_shared(config: TrainConfig, tokenized: Tokenized, hosts: Hosts) -> None:
    share = (tokenized.lengths - tokenized.computed_lengths).sum() / tokenized.lengths.sum()
    if share >= 0.05 and not config.shares_prefixes:
        length = whole_blocks(round(config.row_length / (1 - share)))
        hosts.note(
            f"note: pairs share {share:.0%} of their tokens; packing.attention_length={length} computes them once"
        )


def _load_start(config: TrainConfig, mesh: Mesh, hosts: Hosts) -> Params:
    """The starting model's parameters. The first attempt keeps their fingerprint, which later attempts must match.

    Raises:
      UserError: they cannot be loaded, or are no longer those that the run started from.
    """
    start = StartingModel(config.model)
    params = start.load(mesh, dtype=config.dtype.params)
    found = fingerprint(params, start.config.vocab_size)
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
    """The reference pass, or its sidecar; nothing for a loss that needs no reference."""
    if not config.needs_reference:
        return {}
    output_dir, path = epath.Path(config.output_dir), _sidecar(config)
    hosts.same(f"whether there is {path}", str(path.exists()))
    made_from = {
        "model": (output_dir / "model" / "fingerprint").read_text(),
        "compute dtype": config.dtype.compute,
        **identity,
        **{f"{split} tokens": tokenized.fingerprint for split, tokenized in data.items()},
    }
    sizes = {split: len(tokenized) for split, tokenized in data.items()}
    answers = config.sequences_per_example
    found = references(path, made_from, programs, load_start, batches, sizes, answers=answers)
    return _fused(config, found, identity, data, hosts)


def _fused(
    config: TrainConfig,
    found: dict[str, Reference],
    identity: dict[str, str],
    data: dict[str, Tokenized],
    hosts: Hosts,
) -> dict[str, Reference]:
    """The references with what sources say, if the loss has any."""
    if config.fused_reference is None:
        return found
    tables = open_likelihoods(config, {split: identity[f"{split} data"] for split in data})
    claimed = yaml.safe_load((epath.Path(config.output_dir) / "run.yaml").read_text())["data"]
    for name, sha256 in identity_of(tables).items():
        if claimed[name] != sha256:
            raise UserError(f"preference.sources: host {hosts.index} finds other {name} than host 0 at the start")
    fused = {}
    # A sidecar that another run has made may hold more splits than these.
    for split, tokenized in data.items():
        fusion = config.fused_reference.fusion
        fused[split], unknown = with_likelihoods(found[split], tokenized, tables[split], fusion)
        for source, count in unknown.items():
            if count:
                hosts.note(
                    f"{split}: {source} has no value of {count:,} of {len(tokenized):,} pairs as they are trained on"
                )
    return fused


def _keep_model_files(model: StartingModel, target: epath.Path) -> None:
    """Copies what an export needs beside the weights, so that the run's folder is complete in itself."""
    if target.exists():
        if epath.Path(model.source) == target if is_remote(target) else model.directory.samefile(str(target)):
            raise UserError(f"model {model.source} lies where the run keeps its copy; choose another output_dir")
        target.rmtree()
    target.mkdir(parents=True)
    huggingface.copy_tokenizer(model.directory, target)
    copy(model.directory / "config.json", target / "config.json")
