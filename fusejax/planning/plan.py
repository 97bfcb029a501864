"""Whether a run fits a TPU slice, and how long it takes, found by compiling the run's own programs for the slice.

`Planner` compiles; `TaskPlan` has the results for one task: training, or the reference pass before it.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from fusejax.common.cli import note
from fusejax.config import TrainConfig
from fusejax.distributed.compiled import uncached
from fusejax.distributed.mesh import make_mesh
from fusejax.models.decoder.config import DecoderConfig
from fusejax.objectives.logprobs import Projection
from fusejax.planning import schedule
from fusejax.planning.attention_kernels import attention_flops
from fusejax.planning.checkpoint import CheckpointPlan, checkpoint_plan
from fusejax.planning.compile import Memory, compiled, tree_bytes
from fusejax.planning.links import Links
from fusejax.planning.schedule import Schedule, Traffic
from fusejax.planning.topology import Topology
from fusejax.planning.workload import Workload
from fusejax.training.programs import Programs
from fusejax.training.throughput import model_flops


@dataclasses.dataclass(frozen=True)
class HBM:
    """Bytes on each device: on each chip, or on each half of a TPU7x chip."""

    parameters: int
    moments: int
    """What the optimizer keeps beside the parameters."""
    accumulator: int
    """The sum of gradients over a step's microbatches."""
    temporary: int
    """What a program needs while it runs (the most of all programs), and the code of all programs."""
    code: int
    """Part of `temporary`."""
    activations: int
    """Part of `temporary`: the input of each layer, which is kept for the backward pass under every `remat`."""
    limit: int

    @property
    def state(self) -> int:
        """What stays in memory between steps."""
        return self.parameters + self.moments + self.accumulator

    @property
    def total(self) -> int:
        return self.state + self.temporary

    def as_json(self) -> dict[str, int]:
        return {"state": self.state, "total": self.total, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class Speed:
    """Estimates for one step, or for one microbatch of the reference pass."""

    flops: float
    """Over all chips, recomputation included."""
    model_flops: float
    """Over all chips: `throughput.model_flops` of the step's tokens, without padding."""
    step_seconds: float
    mfu: float
    """`model_flops` divided by what all chips can compute in `step_seconds` at their peak."""
    traffic: dict[str, Traffic]
    """What each device sends, by the kind of collective."""

    @property
    def communication(self) -> Traffic:
        return sum(self.traffic.values(), Traffic())

    def as_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        del values["traffic"]
        kinds = {kind: dataclasses.asdict(traffic) for kind, traffic in self.traffic.items()}
        return values | {"communication": {**dataclasses.asdict(self.communication), "by_kind": kinds}}


_UNKNOWN = dict.fromkeys(("flops", "model_flops", "step_seconds", "mfu", "communication"))


@dataclasses.dataclass(frozen=True)
class TaskPlan:
    hbm: HBM
    fits: bool
    steps: int
    microbatches: int
    """Per step."""
    chips: int
    speed: Speed | None
    """None if the task does not fit."""

    @property
    def total_seconds(self) -> float | None:
        return None if self.speed is None else self.steps * self.speed.step_seconds

    @property
    def chip_hours(self) -> float | None:
        return None if self.total_seconds is None else self.total_seconds * self.chips / 3600

    def as_json(self) -> dict[str, Any]:
        return {
            "hbm": self.hbm.as_json(),
            "fits": self.fits,
            **(self.speed.as_json() if self.speed else _UNKNOWN),
            "microbatches": self.microbatches,
            "steps": self.steps,
            "total_seconds": self.total_seconds,
            "chip_hours": self.chip_hours,
        }


class Planner:
    """Compiles a run's programs for a topology.

    Args:
      model: the architecture to train.
      work: how much there is to compute.
    """

    def __init__(self, topology: Topology, model: DecoderConfig, work: Workload):
        self.topology, self.model, self.work = topology, model, work
        self._devices = topology.devices()
        # Cached: a search and the plan after it ask for the same programs.
        self.hbm = functools.cache(self._hbm)
        self.speed = functools.cache(self._speed)
        self._compiled = functools.cache(self._compile)

    def plan(self, config: TrainConfig) -> dict[str, TaskPlan]:
        """The plan of each task: of `sft`, or of `reference` and `dpo` or `wrpo`."""
        return {task: self._task(config, task) for task in tasks(config)}

    def rows_per_microbatch(self, config: TrainConfig) -> int:
        """Rows of a microbatch, over all devices."""
        return self._programs(config).rows_per_microbatch

    def checkpoint(self, config: TrainConfig) -> CheckpointPlan:
        return checkpoint_plan(self._programs(config).state, self._devices)

    def _hbm(self, config: TrainConfig, task: str) -> tuple[HBM, bool]:
        """What `task` takes of each chip's HBM, and whether it fits."""
        programs = self._programs(config)
        arguments = _arguments(config, programs, task)
        # One after the other: libtpu was seen to crash where two threads compiled at once.
        found = [self._program(config, task, name).memory for name in arguments]
        # The microbatch is the only argument of a program that does not stay in memory between steps.
        microbatch = tree_bytes(programs.microbatch)
        extra = [each.temporary + (name != "apply") * microbatch for name, each in zip(arguments, found, strict=True)]
        code = sum(each.code for each in found)
        parameters = tree_bytes(programs.params)
        trains = task != "reference"  # the reference pass runs with nothing but the parameters in memory
        hbm = HBM(
            parameters=parameters,
            moments=tree_bytes(programs.state) - parameters if trains else 0,
            accumulator=tree_bytes(programs.accumulator) if trains else 0,
            temporary=max(extra) + code,
            code=code,
            activations=self._layer_inputs(config) if trains else 0,
            limit=self.topology.chip.hbm,
        )
        return hbm, all(each.fits for each in found) and hbm.total <= hbm.limit

    def _program(self, config: TrainConfig, task: str, name: str) -> "_Program":
        return self._compiled(_all_that_matters(config, name), task, name)

    def _compile(self, config: TrainConfig, task: str, name: str) -> "_Program":
        note(f"{task}: compiling {name} for {self.topology.name}")
        programs = self._programs(config)
        with uncached():
            memory, text = compiled(getattr(programs, name), *_arguments(config, programs, task)[name])
        if text is None:
            return _Program(memory, None)
        links = Links.of(self.topology, list(programs.mesh.devices.flat))
        # Every token of a row counts as a target.
        turns = Projection().turns(config.packing.rows_per_device * (config.attention_length - 1))
        flops = functools.partial(attention_flops, model=self.model)
        return _Program(memory, schedule.read(text, links, kernel_flops=flops, turns=turns))

    def _speed(self, config: TrainConfig, task: str) -> Speed | None:
        """How long a step of `task` takes; None if one of its programs does not fit."""
        programs = self._programs(config)
        reference = task == "reference"
        runs = {"reference": 1} if reference else {"accumulate": self._microbatches(programs), "apply": 1}
        found = {name: self._program(config, task, name).schedule for name in runs}
        step = Schedule()
        for name, times in runs.items():
            each = found[name]
            if each is None:
                return None
            step += each * times
        examples: float = self.work.batch_size
        if reference:
            examples = self.work.examples / self.work.passes(programs.rows_per_microbatch)
        parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(programs.params))
        a_token = model_flops(self.model, parameters, config.attention_length, training=not reference)
        # What answers share counts once.
        useful = a_token * examples * self.work.tokens_per_example * config.row_length / config.attention_length
        devices = self.topology.num_devices
        return Speed(
            flops=devices * step.flops,
            model_flops=useful,
            step_seconds=step.seconds,
            mfu=useful / (step.seconds * self.topology.chip.flops * devices),
            traffic=step.traffic,
        )

    def _microbatches(self, programs: Programs) -> int:
        return self.work.microbatches(programs.rows_per_microbatch)

    def _task(self, config: TrainConfig, task: str) -> TaskPlan:
        hbm, fits = self.hbm(config, task)
        rows = self.rows_per_microbatch(config)
        reference = task == "reference"
        return TaskPlan(
            hbm=hbm,
            fits=fits,
            steps=self.work.passes(rows) if reference else self.work.steps,
            microbatches=1 if reference else self.work.microbatches(rows),
            chips=self.topology.chips,
            speed=self.speed(config, task) if fits else None,
        )

    def _programs(self, config: TrainConfig) -> Programs:
        mesh = make_mesh(config.mesh, self._devices)
        return Programs(config, self.model, mesh, num_steps=self.work.steps, weights=self.work.weights)

    def _layer_inputs(self, config: TrainConfig) -> int:
        tokens = config.packing.rows_per_device * config.row_length
        return self.model.num_layers * tokens * self.model.hidden_size * jnp.dtype(config.dtype.compute).itemsize


@dataclasses.dataclass(frozen=True)
class _Program:
    """A compiled program."""

    memory: Memory
    schedule: Schedule | None
    """None if it does not fit."""


def tasks(config: TrainConfig) -> list[str]:
    """What there is to plan: the reference pass, if the loss needs one, and training, named by its kind of records."""
    return [*(["reference"] if config.needs_reference else []), config.record_kind]


def _all_that_matters(config: TrainConfig, name: str) -> TrainConfig:
    """The configuration with every key that this program does not depend on reset, so that it is compiled only once."""
    if name == "accumulate":
        return config
    plain = config.model_copy(update={"remat": "full"})  # there is no backward pass
    if name == "apply":
        plain = plain.model_copy(update={"packing": config.packing.model_copy(update={"rows_per_device": 1})})
    return plain


def _arguments(config: TrainConfig, programs: Programs, task: str) -> dict[str, tuple[Any, ...]]:
    """The programs that a task runs, each with the shapes of its arguments."""
    evaluates = ["evaluate"] if config.data.eval is not None else []
    names = ["reference"] if task == "reference" else ["accumulate", "apply", *evaluates]
    return {name: programs.arguments(name) for name in names}
