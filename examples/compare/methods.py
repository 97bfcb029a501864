"""What is compared: each method as a few changes to the quickstart's configurations, and what it needs beforehand.

Paths are those of the quickstart, which runs in the folder of a seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quickstart.models import SOURCES

HOME = "runs/quickstart"
DISTRIBUTIONS, LIKELIHOODS = "distributions", "likelihoods"
SECOND_ROUND, WEIGHTED = "second-round", "fuserl"
"""What a method may need of the data pipeline beside the quickstart's shards."""


def sidecars(*sources: str) -> list[str]:
    """Of the target as it was before the fusion, which FuseLLM takes for one source more, and of these sources."""
    return [f"{HOME}/data/distributions/{name}/train" for name in ("base", *sources)]


def shards(folder: str, kind: str) -> dict[str, str]:
    return {f"data.{split}": f"{HOME}/{folder}/{kind}/{split}" for split in ("train", "eval")}


@dataclass(frozen=True)
class Run:
    """A run of the trainer."""

    config: str
    """The quickstart's configuration that it starts from: `sft` or `dpo`."""
    changes: Mapping[str, Any]
    """Keys, with their dots, and other values."""
    data: str | None = None
    """What it needs of the data pipeline."""
    after: str | None = None
    """The run that it starts from, if this is not the base model."""


PAIRWISE = [f"pairwise-{source}" for source in SOURCES]
RUNS = {
    "sft": Run("sft", {}),
    "explicit": Run("sft", {"fusion": {"sidecars": sidecars(*SOURCES)}}, DISTRIBUTIONS),
    **{
        name: Run("sft", {"fusion": {"sidecars": sidecars(source)}}, DISTRIBUTIONS)
        for name, source in zip(PAIRWISE, SOURCES, strict=True)
    },
    "alm": Run("sft", {"fusion": {"loss": "alm", "sidecars": sidecars(*SOURCES)}}, DISTRIBUTIONS),
    "dpo": Run("dpo", {}, after="sft"),
    "wrpo": Run(
        "dpo",
        {
            "task": "preference",
            **shards("wrpo-data", "wrpo"),
            "preference": {"loss": "wrpo", "beta": 10, "length_normalized": True, "alpha": 0.1},
            "packing": {"row_length": 288, "rows_per_device": 4},  # three answers a prompt
        },
        SECOND_ROUND,
        after="sft",
    ),
    "infifpo": Run(
        "dpo",
        {
            "task": "preference",
            "preference": {
                "loss": "infifpo",
                "sources": [f"{HOME}/data/likelihoods/{source}" for source in SOURCES],
            },
        },
        LIKELIHOODS,
        after="sft",
    ),
    "fuserl-sft": Run("sft", shards("fuserl-data", "sft"), WEIGHTED),
    "fuserl": Run("dpo", shards("fuserl-data", "dpo") | {"model": f"{HOME}/fuserl-sft"}, WEIGHTED, after="fuserl-sft"),
}
"""By the names of their folders. `sft` and `dpo` are the quickstart's own."""


@dataclass(frozen=True)
class Method:
    """A line of the table."""

    label: str
    words: str
    runs: tuple[str, ...]
    """The runs whose cost it has; the last one's model is its own, unless they are merged."""
    merged: bool = False


METHODS = {
    "base": Method("base", "the target before the fusion", ()),
    "sft": Method("SFT", "the best answer of all sources", ("sft",)),
    "explicit": Method(
        "explicit", "SFT, and the distributions of the source that finds the answer likeliest", ("explicit",)
    ),
    "sce": Method(
        "explicit + SCE", "the same with each source alone; the four models are merged", (*PAIRWISE,), merged=True
    ),
    "alm": Method("ALM", "SFT, and the source's likelihood of each piece of the answer", ("alm",)),
    "dpo": Method("DPO", "after SFT, a source's best answer against its worst", ("sft", "dpo")),
    "wrpo": Method(
        "WRPO", "after SFT, the sources' best answer and the target's own against its worst", ("sft", "wrpo")
    ),
    "infifpo": Method("InfiFPO", "after SFT, the pairs of DPO, with the sources for a reference", ("sft", "infifpo")),
    "fuserl": Method(
        "FuseRL", "several answers a prompt, then a pair of each source, weighted", ("fuserl-sft", "fuserl")
    ),
}
PUBLISHED = ("sft", "explicit", "dpo", "wrpo")
"""From the weakest to the strongest, in the table of WRPO (arXiv:2412.03187)."""
