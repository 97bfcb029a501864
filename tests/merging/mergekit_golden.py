"""Writes mergekit.json beside this file: what mergekit makes of small random tensors.

    python tests/merging/mergekit_golden.py

with an interpreter that mergekit is installed for. DARE's masks are given to it, as ours are made; and they are divided
by the density, as in the paper, where mergekit restores the L1 norm.
"""

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import torch
from mergekit import sparsify
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import TensorBatch, TensorGroup
from mergekit.merge_methods.linear import linear_merge
from mergekit.merge_methods.sce import sce_merge

SIZE, SEED, NAME, DENSITY, WEIGHTS = 60, 7, "model.norm.weight", 0.6, [0.2, 0.5, 0.3]
GOLDEN = Path(__file__).with_name("mergekit.json")


def inputs() -> tuple[np.ndarray, list[np.ndarray]]:
    """The pivot, and the targets in the order of their bytes, which that of masks is."""
    random = np.random.default_rng(0)
    pivot = random.standard_normal(SIZE).astype(np.float32)
    deltas = random.standard_normal((3, SIZE)) * [[0.1], [0.2], [0.15]]
    deltas[:, :3] = 0
    return pivot, sorted((pivot + deltas).astype(np.float32), key=lambda target: target.tobytes())


def masks() -> list[torch.Tensor]:
    uniform = [
        (np.random.PCG64([SEED, rank, *NAME.encode()]).random_raw(SIZE) >> np.uint64(11)) * 2.0**-53
        for rank in range(3)
    ]
    return [torch.from_numpy((each < DENSITY).astype(np.float32)) for each in uniform]


def main() -> None:
    pivot, targets = (torch.from_numpy(np.stack(each)) for each in (inputs()[0][None], inputs()[1]))
    group = TensorGroup.from_tensors([*pivot, *targets], base_index=0)

    def merged(name: str, weights: list[float], **parameters) -> list[float]:
        ids = [entry.id for entry in group.non_base]
        common = {"int8_mask": False, "rescale": False, "normalize": False, "lambda": 1.0}
        given = {"weight": dict(zip(ids, weights, strict=True)), "density": dict.fromkeys(ids, DENSITY)}
        return registry.get(name).merge_group(group, **{**common, **given, **parameters}).tolist()

    results = {
        "linear": linear_of(targets),
        "task_arithmetic": merged("task_arithmetic", WEIGHTS),
        "ties": merged("ties", WEIGHTS, normalize=True),
        "ties, not normalized": merged("ties", WEIGHTS),
        "sce, tau 1": sce_merge.implementation(group, select_topk=1.0).tolist(),
        "sce, tau 0.3": sce_merge.implementation(group, select_topk=0.3).tolist(),
    }
    rescaled = [weight / DENSITY for weight in WEIGHTS]
    for name in ("dare_linear", "dare_ties"):
        given = iter(masks())
        sparsify.torch.bernoulli = lambda *_, given=given: next(given)
        results[name] = merged(name, rescaled)
    values = {
        "origin": f"mergekit {importlib.metadata.version('mergekit')}, torch {torch.__version__}",
        "pivot": pivot[0].tolist(),
        "targets": targets.tolist(),
        "seed": SEED,
        "name": NAME,
        "density": DENSITY,
        "weights": WEIGHTS,
        "merged": results,
    }
    GOLDEN.write_text(json.dumps(values) + "\n")


def linear_of(targets: torch.Tensor) -> list[float]:
    batch = TensorBatch(tuple(target[None] for target in targets))
    return linear_merge.implementation(batch, weight=torch.tensor([WEIGHTS]), normalize=True)[0].tolist()


if __name__ == "__main__":
    main()
