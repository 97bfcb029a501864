"""The arrays of a microbatch, in one table. The loader fills them, programs and plans take their shapes from here.

A *microbatch* is the input of one device program: a fixed number of rows, so that one program serves all steps. A *row*
holds the token sequences of several examples, one after the other. Imports no JAX.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

Microbatch = Mapping[str, Any]
"""The arrays that are present, by their names in `ARRAYS`: NumPy's on the host, JAX's on devices."""

Axis = Literal["L", "C", "P", "1", "L K"]
"""L: token slots that a row attends over. C: tokens that it computes; fewer than L where answers share prefixes
(`fusejax.models.decoder.prefix_sharing`). P: examples that it holds at most. 1: one number for the whole row. K: ids of
a soft target."""
Condition = Literal[
    "shared prefixes",
    "pairs",
    "triples",
    "weights",
    "reference",
    "fused reference",
    "progress",
    "soft targets",
    "chunks",
]
"""What the microbatch has, of which an array is a part: pairs are examples of two answers or of three."""


@dataclasses.dataclass(frozen=True)
class BatchArray:
    """One array [R, axis], R being the rows."""

    axis: Axis
    dtype: type[np.generic]
    part_of: tuple[Condition, ...]
    """It is there only where the microbatch has all of these."""
    padding: int | Axis
    """The value of empty places. An axis stands for its size: an index just beyond the last."""
    meaning: str


ARRAYS = {
    "tokens": BatchArray("L", np.int32, (), 0, "token ids"),
    "positions": BatchArray("L", np.int32, (), 0, "position ids, from 0 in each sequence"),
    "segment_ids": BatchArray("L", np.int32, (), 0, "which sequence of the row, from 1; 0 is padding"),
    "loss_mask": BatchArray(
        "L", np.bool_, (), 0, "True where the token is a target, so never at the first of a sequence"
    ),
    "first": BatchArray("C", np.int32, ("shared prefixes",), "L", "slot of each computed token"),
    "second": BatchArray("C", np.int32, ("shared prefixes",), "L", "its other slot, in the second sequence, if any"),
    "third": BatchArray("C", np.int32, ("shared prefixes", "triples"), "L", "its slot in the third sequence, if any"),
    "source": BatchArray("L", np.int32, ("shared prefixes",), "C", "computed token of each slot"),
    "pair_ids": BatchArray(
        "P",
        np.int32,
        ("pairs",),
        -1,
        "examples of the row; the k-th, from 0, of n answers each has segments kn + 1 to kn + n, the last for rejected",
    ),
    "weights": BatchArray("P", np.float32, ("weights",), 0, "of the row's examples in the loss, in order"),
    "reference_source": BatchArray(
        "P", np.float32, ("triples", "reference"), 0, "as below, of a triple's first response, the source's"
    ),
    "reference_chosen": BatchArray(
        "P",
        np.float32,
        ("pairs", "reference"),
        0,
        "log-probability of the chosen response, of a triple the target's, under the starting model, in nats",
    ),
    "reference_rejected": BatchArray("P", np.float32, ("pairs", "reference"), 0, "the same of the rejected response"),
    **{
        f"reference_{side}_{end}": BatchArray("P", np.float32, ("pairs", "fused reference"), 0, meaning)
        for side in ("chosen", "rejected")
        for end, meaning in (
            (
                "low",
                f"of the {side} response, the least value of sources and starting model, a mean over tokens in nats",
            ),
            ("high", "the greatest"),
        )
    },
    "progress": BatchArray("1", np.float32, ("progress",), 0, "optimizer steps done, as a share of the run's"),
    "soft_ids": BatchArray(
        "L K", np.int32, ("soft targets",), 0, "ids that a source holds possible in the token's place"
    ),
    "soft_weights": BatchArray(
        "L K", np.float32, ("soft targets",), 0, "their probabilities; all 0 where there is no distribution"
    ),
    "chunk_ids": BatchArray(
        "L", np.int32, ("chunks",), 0, "which chunk of the row the token is of, from 1; 0 for tokens of none"
    ),
    "chunk_logprobs": BatchArray(
        "L", np.float32, ("chunks",), 0, "at the last token of a chunk, a source's log-probability of it, in nats"
    ),
}


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """All that decides which arrays a microbatch has, and their sizes."""

    rows: int
    row_length: int
    """C: tokens that a row computes."""
    attention_length: int
    """L: tokens that a row attends over. With more than `row_length`, answers share their prefixes."""
    answers: int = 0
    """Of each example; 0 where examples are single sequences."""
    reference: bool = False
    """Whether the reference's log-probabilities of the answers are there."""
    fused: bool = False
    """Whether sources are a part of the reference."""
    weights: bool = False
    """Whether examples have weights."""
    progress: bool = False
    """Whether the loss is told how far the run is."""
    soft: int = 0
    """K: ids of a soft target; 0 without soft targets."""
    chunks: bool = False
    """Whether target tokens are in chunks, which a source has log-probabilities of."""

    @property
    def shares_prefixes(self) -> bool:
        return self.attention_length > self.row_length

    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Name -> shape and dtype of each array that is present."""
        has: dict[Condition, bool] = {
            "shared prefixes": self.shares_prefixes,
            "pairs": self.answers > 0,
            "triples": self.answers == 3,
            "reference": self.reference,
            "fused reference": self.fused,
            "progress": self.progress,
            "weights": self.weights,
            "soft targets": self.soft > 0,
            "chunks": self.chunks,
        }
        return {
            name: ((self.rows, *self._sizes(array.axis)), np.dtype(array.dtype))
            for name, array in ARRAYS.items()
            if all(has[each] for each in array.part_of)
        }

    def empty(self) -> dict[str, np.ndarray]:
        """A microbatch without examples.

        Example:
          >>> BatchShape(rows=2, row_length=16, attention_length=16, answers=2).empty()["pair_ids"].tolist()
          [[-1], [-1]]
        """

        def fill(padding: int | Axis) -> int:
            return padding if isinstance(padding, int) else self._sizes(padding)[0]

        return {
            name: np.full(shape, fill(ARRAYS[name].padding), dtype) for name, (shape, dtype) in self.arrays().items()
        }

    def _sizes(self, axis: Axis) -> tuple[int, ...]:
        return {
            "L": (self.attention_length,),
            "C": (self.row_length,),
            "P": (max_examples_per_row(self.row_length),),
            "1": (1,),
            "L K": (self.attention_length, self.soft),
        }[axis]


def max_examples_per_row(row_length: int) -> int:
    """P, the size of `pair_ids`. As a limit, it makes packing worse only if examples average under 16 tokens."""
    return max(1, row_length // 16)
