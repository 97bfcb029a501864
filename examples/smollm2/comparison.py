"""The methods beside each other: each on the held-out prompts, and what it changes against another one, in pairs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from examples.smollm2.heldout import Estimate, Likelihoods, estimate, prefers, share


@dataclasses.dataclass(frozen=True)
class Method:
    """A column of the table."""

    title: str
    against: str | None
    """The method that the differences are to."""
    rewarded: bool
    """Whether it begins at the SFT model, which is then the reference of its rewards."""


METHODS = {
    "base": Method("SmolLM2-135M-Instruct", None, False),
    "sft": Method("SFT", "base", False),
    "fusion": Method("explicit fusion", "sft", False),
    "dpo": Method("DPO", "sft", True),
    "simpo": Method("SimPO", "dpo", True),
    "wrpo": Method("WRPO", "dpo", True),
}
KINDS = ("all", "longer", "shorter")
"""Of pairs: all, and those whose chosen answer is the longer or the shorter one."""


def compare(found: dict[str, Likelihoods], costs: dict[str, dict[str, float]]) -> dict[str, Any]:
    """All figures of the table.

    Args:
      found: of each of `METHODS`, what `heldout.ask` gives.
      costs: of each but `base`, what `cost` gives.
    """
    sft, longer = found["sft"], found["sft"].chosen_longer
    of_kind = {"all": np.ones_like(longer), "longer": longer, "shorter": ~longer}
    likelier = {name: each.chosen > each.rejected for name, each in found.items()}
    right = {name: prefers(found[name], sft) for name, method in METHODS.items() if method.rewarded}

    def shares(facts: dict[str, Bool[np.ndarray, "P"]], name: str) -> dict[str, Any] | None:
        if name not in facts:
            return None
        against = METHODS[name].against
        values: dict[str, Any] = {"share": {kind: share(facts[name][which]) for kind, which in of_kind.items()}}
        if against in facts:
            changes = facts[name].astype(float) - facts[against].astype(float)
            # One pair has no spread.
            values["change"] = {
                kind: estimate(changes[which]) if which.sum() > 1 else None for kind, which in of_kind.items()
            }
        return values

    methods = {}
    for name, method in METHODS.items():
        loss: dict[str, Estimate] = {"mean": estimate(-found[name].best)}
        if method.against is not None:
            loss["change"] = estimate(found[method.against].best - found[name].best)
        methods[name] = {
            "against": method.against,
            "loss": loss,
            "reward_accuracy": shares(right, name),
            "likelier": shares(likelier, name),
            "cost": costs.get(name),
        }
    pairs = {kind: int(which.sum()) for kind, which in of_kind.items()}
    return {"prompts": len(sft.best), "pairs": pairs, "methods": methods}


def cost(metrics: Path) -> dict[str, float]:
    """What a run took, by its `metrics.jsonl`: steps, examples (pairs, triples), tokens, and the steps' seconds."""
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    sums = {name: sum(step[name] for step in steps) for name in ("examples", "tokens", "step_time")}
    return {"steps": len(steps), "examples": sums["examples"], "tokens": sums["tokens"], "seconds": sums["step_time"]}


def header() -> list[str]:
    return ["", *(method.title for method in METHODS.values())]


def rows(results: dict[str, Any]) -> list[list[str]]:
    """The table: a row of `header`'s length for each figure, `±` being standard errors."""
    methods, pairs = results["methods"], results["pairs"]

    def row(title: str, get: Any) -> list[str]:
        return [title, *(get(methods[name]) for name in METHODS)]

    def nats(key: str, sign: str) -> Any:
        return lambda found: _estimate(found["loss"].get(key), 1, 4, sign)

    def percent(figure: str, key: str, kind: str, sign: str) -> Any:
        return lambda found: _estimate(((found[figure] or {}).get(key) or {}).get(kind), 100, 1, sign)

    def number(key: str) -> Any:
        return lambda found: f"{found['cost'][key]:,.0f}" if found["cost"] else "–"

    of_kind = {
        "all": f"of {pairs['all']} pairs",
        "longer": f"of {pairs['longer']} whose chosen answer is the longer one",
        "shorter": f"of {pairs['shorter']} whose chosen answer is the shorter one",
    }
    titles = {"reward_accuracy": "reward accuracy, %", "likelier": "chosen likelier per token than rejected, %"}
    shares = []
    for figure, title in titles.items():
        for kind in KINDS:
            shares += [
                row(
                    f"{title}, {of_kind[kind]}" if kind == "all" else f"... {of_kind[kind]}",
                    percent(figure, "share", kind, ""),
                ),
                row("... change", percent(figure, "change", kind, "+")),
            ]
    return [
        row("changes are against", lambda found: METHODS[found["against"]].title if found["against"] else "–"),
        row(f"loss of the best answers to {results['prompts']} prompts, nats per token", nats("mean", "")),
        row("... change", nats("change", "+")),
        *shares,
        row("training: steps", number("steps")),
        row("... examples, pairs or triples", number("examples")),
        row("... tokens", number("tokens")),
        row("... seconds", number("seconds")),
    ]


def _estimate(found: Estimate | None, factor: float, digits: int, sign: str) -> str:
    """
    >>> _estimate((0.5, 0.25), 100, 1, "+")
    '+50.0 ± 25.0'
    """
    return "–" if found is None else f"{factor * found[0]:{sign}.{digits}f} ± {factor * found[1]:.{digits}f}"


def markdown(results: dict[str, Any]) -> str:
    """The table in Markdown."""
    lines = [header(), ["---"] * (len(METHODS) + 1), *rows(results)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
