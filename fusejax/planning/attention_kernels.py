"""FLOPs of the fused attention kernels in a compiled program, of which the compiler knows nothing."""

import math
import re

from fusejax.models.attention import splash
from fusejax.models.decoder.config import DecoderConfig
from fusejax.planning.hlo import Instruction

_KERNEL = re.compile(r"splash_mha_(fwd|dkv)")
# Matrix products per query-key pair. Forward: scores and the weighted sum of values; backward: scores again, and the
# gradients of weights, values, keys and queries.
_PRODUCTS = {"fwd": 2, "dkv": 5}


def attention_flops(kernel: Instruction, model: DecoderConfig) -> float:
    """FLOPs on each device of a call of a kernel; 0 if it is none for attention.

    Args:
      model: gives the layers' windows. A program does not say which of them a kernel has, so their mean counts; all
        kernels together are then right if each runs equally often.
    """
    match = _KERNEL.match(kernel.name)
    if match is None:
        return 0.0
    # The largest result is the output [rows, heads, length, width] or, for the backward kernel, the gradient of
    # queries from each block of keys, with one more axis after the rows. A single row has no axis of rows.
    largest = max((array.shape for array in kernel.arrays), key=math.prod)
    *_, heads, length, width = largest
    rows = largest[0] if len(largest) == (4 if match[1] == "fwd" else 5) else 1
    pairs = sum(_pairs(length, window) for window in model.windows) / model.num_layers
    return _PRODUCTS[match[1]] * 2 * width * rows * heads * pairs


def _pairs(length: int, window: int | None) -> int:
    """Query-key pairs that a kernel computes for a row: all pairs of every block in which any pair is visible."""
    block = min(splash.BLOCK, length)
    blocks = -(-length // block)
    back = blocks if window is None else (window - 2) // block + 1  # blocks before the diagonal that a query may see
    return sum(min(i, back) + 1 for i in range(blocks)) * block**2
