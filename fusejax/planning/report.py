"""A plan as a table, and as JSON."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from fusejax.config import TrainConfig
from fusejax.planning.links import KINDS
from fusejax.planning.plan import Planner, Speed, TaskPlan
from fusejax.planning.search import SearchResult

GB = 1e9


def plan_json(
    planner: Planner, config: TrainConfig, plans: Mapping[str, TaskPlan], source: str, search: SearchResult | None
) -> dict[str, Any]:
    """All figures, sizes in bytes per device; speeds are `null` if a task does not fit. Arguments: `plan_table`'s."""
    work = planner.work
    values = {
        "topology": planner.topology.name,
        "chips": planner.topology.chips,
        "devices": planner.topology.num_devices,
        "model": source,
        "remat": config.remat,
        "rows_per_device": config.packing.rows_per_device,
        "examples": work.examples,
        "tokens_per_example": work.tokens_per_example,
        "assumed": list(work.assumed),
        "tasks": {task: plan.as_json() for task, plan in plans.items()},
        "checkpoint": planner.checkpoint(config).as_json(),
    }
    return values | ({"search": dataclasses.asdict(search)} if search else {})


def plan_table(planner: Planner, config: TrainConfig, plans: Mapping[str, TaskPlan], source: str) -> str:
    """All figures of all tasks, one column per task.

    Args:
      source: where the architecture was found.
    """
    topology, work = planner.topology, planner.work
    slices = f"{topology.slices} slices of " if topology.slices > 1 else ""
    device = "chip" if topology.chip.devices_per_chip == 1 else "half chip"
    assumed = f" (assumed: {', '.join(work.assumed)})" if work.assumed else ""
    lines = [
        f"{topology.name}: {topology.chips} chips, {slices}{topology.shape}; {source}",
        f"{work.examples:,} examples of {work.tokens_per_example:,.0f} tokens{assumed}; batch {work.batch_size}, "
        f"{work.rows_per_step:.1f} rows of {work.tokens_per_row} per step, "
        f"{planner.rows_per_microbatch(config)} per microbatch; remat {config.remat}",
        "",
    ]

    def row(name: str, cell: Callable[[TaskPlan], str]) -> None:
        lines.append(f"{name:<34}" + "".join(f"{cell(plan):>14}" for plan in plans.values()))

    def gigabytes(name: str, size: Callable[[TaskPlan], int]) -> None:
        row(name, lambda plan: f"{size(plan) / GB:.2f}")

    lines.append(f"{f'HBM per {device}, in GB':<34}" + "".join(f"{task:>14}" for task in plans))
    gigabytes("  parameters", lambda plan: plan.hbm.parameters)
    gigabytes("  optimizer's moments", lambda plan: plan.hbm.moments)
    gigabytes("  gradient accumulator", lambda plan: plan.hbm.accumulator)
    gigabytes("state", lambda plan: plan.hbm.state)
    gigabytes("temporary", lambda plan: plan.hbm.temporary)
    gigabytes("  of it layer inputs", lambda plan: plan.hbm.activations)
    gigabytes("  of it the programs' code", lambda plan: plan.hbm.code)
    gigabytes("total", lambda plan: plan.hbm.total)
    gigabytes("limit", lambda plan: plan.hbm.limit)
    row("fits", lambda plan: "yes" if plan.fits else "NO")
    lines.append("")
    row("microbatches per step", lambda plan: f"{plan.microbatches}")
    row("steps", lambda plan: f"{plan.steps:,}")
    row("PFLOPs per step, all chips", _speed(lambda speed: f"{speed.flops / 1e15:.3g}"))
    row("seconds per step, estimated", _speed(lambda speed: f"{speed.step_seconds:.3g}"))
    row("MFU at that", _speed(lambda speed: f"{speed.mfu:.1%}"))
    row("hours in all", lambda plan: "-" if plan.total_seconds is None else f"{plan.total_seconds / 3600:.3g}")
    row("chip-hours", lambda plan: "-" if plan.chip_hours is None else f"{plan.chip_hours:.3g}")
    lines += ["", f"communication per {device} and step"]
    found = [plan.speed.traffic for plan in plans.values() if plan.speed]
    for kind in KINDS:
        if any(kind in traffic for traffic in found):
            row(f"  {kind}, GB", _speed(lambda speed, kind=kind: f"{_sent(speed, kind) / GB:.3g}"))
    row("seconds on the links", _speed(lambda speed: f"{speed.communication.seconds:.3g}"))
    row("  of it not hidden", _speed(lambda speed: f"{speed.communication.exposed_seconds:.3g}"))
    row("share of the step", _speed(lambda speed: f"{speed.communication.exposed_seconds / speed.step_seconds:.1%}"))
    lines += ["", str(planner.checkpoint(config))]
    return "\n".join(lines)


def _sent(speed: Speed, kind: str) -> float:
    return speed.traffic[kind].bytes if kind in speed.traffic else 0.0


def search_table(result: SearchResult, limit: int) -> str:
    """What was tried, and what to write into the configuration."""
    lines = [f"{'remat':<10}{'rows per device':>16}{'HBM, GB':>10}{'fits':>6}{'s per step':>12}"]
    for trial in result.trials:
        seconds = "" if trial.step_seconds is None else f"{trial.step_seconds:.3g}"
        lines.append(
            f"{trial.remat:<10}{trial.rows_per_device:>16}{trial.total / GB:>10.2f}"
            f"{'yes' if trial.fits else 'NO':>6}{seconds:>12}"
        )
    best = result.best
    if best is None:
        return "\n".join([*lines, f"nothing fits {limit / GB:.2f} GB: take more chips"])
    more = best.largest_rows_per_device
    note = "" if more == best.rows_per_device else f" ({more} would fit, and stay partly empty)"
    return "\n".join([*lines, f"fastest: remat={best.remat} packing.rows_per_device={best.rows_per_device}{note}"])


def _speed(cell: Callable) -> Callable[[TaskPlan], str]:
    return lambda plan: "-" if plan.speed is None else cell(plan.speed)
