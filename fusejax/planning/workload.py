"""How much a run has to compute: examples, steps, and the microbatches that a step takes."""

import dataclasses
import json
import math
from typing import Any

from etils import epath

from fusejax.config import TrainConfig
from fusejax.data.packing import num_steps
from fusejax.data.records import MANIFEST, Kind

# What is assumed where nothing is known: the counts of FuseChat-3.0's data, and the mean length of real answers with
# their prompts (`benchmarks/packing_fill.py` on four models' answers to AlpacaEval; a pair has two of them). WRPO's
# triples are of two thirds of the prompts of UltraFeedback, which has about 60,000.
EXAMPLES: dict[Kind, int] = {"sft": 94_539, "dpo": 64_128, "wrpo": 40_000}
TOKENS: dict[Kind, int] = {"sft": 466, "dpo": 932, "wrpo": 1_398}
FILL = 0.996
"""Share of a packed row that holds tokens, measured there too."""


@dataclasses.dataclass(frozen=True)
class Workload:
    examples: int
    tokens_per_example: float
    """Of a pair or a triple: all of its sequences."""
    steps: int
    batch_size: int
    tokens_per_row: int
    """The row's `attention_length`: pairs are assumed to share as many tokens as it allows for."""
    assumed: tuple[str, ...]
    """Which of `examples`, `tokens_per_example` and `shared_tokens` are assumptions."""
    weights: bool = False
    """Whether examples have weights."""

    @property
    def rows_per_step(self) -> float:
        """Packed rows that a step's examples fill, on average."""
        return self._packed(self.batch_size)

    def microbatches(self, rows_per_microbatch: int) -> int:
        """Microbatches that a step takes."""
        return math.ceil(self.rows_per_step / rows_per_microbatch)

    def passes(self, rows_per_microbatch: int) -> int:
        """Microbatches of one pass over all examples."""
        return math.ceil(self._packed(self.examples) / rows_per_microbatch)

    def _packed(self, examples: int) -> float:
        return max(1.0, examples * self.tokens_per_example / (self.tokens_per_row * FILL))


def workload(config: TrainConfig, *, examples: int | None = None, tokens_per_example: float | None = None) -> Workload:
    """The workload by what is given, else by the manifest of `data.train`, else by the constants above."""
    assumed = []
    manifests = {split: _manifest(path) for split, path in config.data if path is not None}
    if examples is None:
        examples = manifests["train"].get("examples")
    if examples is None:
        examples = EXAMPLES[config.record_kind]
        assumed.append("examples")
    if tokens_per_example is None:
        tokens_per_example = min(TOKENS[config.record_kind], config.attention_length)
        assumed.append("tokens_per_example")
    if config.shares_prefixes:
        assumed.append("shared_tokens")
    steps = num_steps(examples, config.batch_size, config.epochs)
    return Workload(
        examples=examples,
        tokens_per_example=tokens_per_example,
        steps=min(steps, config.max_steps or steps),
        batch_size=config.batch_size,
        tokens_per_row=config.attention_length,
        assumed=tuple(assumed),
        weights=any(bool(manifest.get("weighted")) for manifest in manifests.values()),
    )


def _manifest(split: str) -> dict[str, Any]:
    """What the manifest says of a split, if it lies where the configuration says."""
    path = epath.Path(split)
    try:
        found = json.loads((path.parent / MANIFEST).read_text())["splits"][path.name]
        return {**found, "examples": int(found["examples"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
