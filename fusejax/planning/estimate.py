"""Estimates of how long a program runs on a chip, and of the FLOPs of its fused attention.

XLA's cost analysis counts the body of a loop once, and the layers are a loop. So a program is compiled for two shallow
models with all loops unrolled, and what a layer adds is read off the difference.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

from fusejax.models.attention import splash
from fusejax.models.decoder.config import DecoderConfig
from fusejax.planning.compile import Cost
from fusejax.planning.topology import Chip

# A fused attention kernel, as a compiled program calls it.
_KERNEL = re.compile(r"%splash_mha_(fwd|dkv)\S* = (.*?) custom-call\(")
_SHAPE = re.compile(r"\[([\d,]+)\]")
# Matrix products per query-key pair. Forward: scores and the weighted sum of values; backward: scores again, and the
# gradients of weights, values, keys and queries.
_PRODUCTS = {"fwd": 2, "dkv": 5}


def shallow_depths(model: DecoderConfig) -> tuple[int, ...]:
    """Depths to extrapolate from, or only the depth of the model itself.

    They are 2 and 4 layers if possible; always whole blocks, followed by the model's own tail: so what they differ by
    is what the model has more of.
    """
    block, tail = len(model.pattern), len(model.tail)
    step = block * max(1, 2 // block)
    few, more = step + tail, 2 * step + tail
    return (few, more) if model.num_layers > more else (model.num_layers,)


def with_layers(model: DecoderConfig, layers: int) -> DecoderConfig:
    """The same model with its first `layers` layers only."""
    return dataclasses.replace(model, windows=model.windows[:layers])


def extrapolate(costs: Sequence[Cost], model: DecoderConfig) -> Cost:
    """The cost for all layers of `model` from those at each of `shallow_depths`."""
    if len(costs) == 1:
        return costs[0]
    few, more = shallow_depths(model)
    low, high = costs
    return low + (high + low * -1) * ((model.num_layers - few) / (more - few))


def attention_flops(program: str, model: DecoderConfig) -> float:
    """FLOPs per chip of the fused attention kernels in a compiled program, which the compiler does not count.

    Args:
      program: the compiled program's text.
      model: gives the layers' windows.
    """
    total = 0.0
    for kind, results in _KERNEL.findall(program):
        shapes = [tuple(map(int, shape.split(","))) for shape in _SHAPE.findall(results)]
        # The largest result is the output [rows, heads, length, width] or, for the backward kernel, the gradient of
        # queries from each block of keys, with one more axis after the rows. A single row has no axis of rows.
        largest = max(shapes, key=math.prod)
        *_, heads, length, width = largest
        rows = largest[0] if len(largest) == (4 if kind == "fwd" else 5) else 1
        pairs = sum(_pairs(length, window) for window in model.windows) / model.num_layers
        total += _PRODUCTS[kind] * 2 * width * rows * heads * pairs
    return total


def _pairs(length: int, window: int | None) -> int:
    """Query-key pairs that a kernel computes for a row: all pairs of every block in which any pair is visible."""
    block = min(splash.BLOCK, length)
    blocks = -(-length // block)
    back = blocks if window is None else (window - 2) // block + 1  # blocks before the diagonal that a query may see
    return sum(min(i, back) + 1 for i in range(blocks)) * block**2


def seconds(costs: Sequence[Cost], chip: Chip) -> tuple[list[float], str]:
    """Seconds of each program, and the kind of estimate: `compiler` for all programs, or `roofline` for all.

    The compiler's estimates are used if it has any for the chip (`Chip.knows_seconds`) and none is below the time of
    the matrix products at the chip's peak. Fused attention, which they leave out, is added at that peak. The roofline
    is the time of all products or of all bytes at the published peaks, whichever is longer. Neither includes the time
    that chips wait for each other.
    """
    attention = [cost.attention / chip.flops for cost in costs]
    if chip.knows_seconds and all(cost.seconds >= cost.flops / chip.flops for cost in costs):
        return [cost.seconds + extra for cost, extra in zip(costs, attention, strict=True)], "compiler"
    rooflines = [
        max(cost.flops / chip.flops + extra, cost.bytes / chip.bandwidth)
        for cost, extra in zip(costs, attention, strict=True)
    ]
    return rooflines, "roofline"
