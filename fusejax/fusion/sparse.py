"""Sparse distributions: a few token ids at each place, with their probabilities."""

import numpy as np
from jaxtyping import Float, Float32, Int32, Integer


def add_up(
    ids: Integer[np.ndarray, "p K"], probs: Float[np.ndarray, "p K"], k: int
) -> tuple[Int32[np.ndarray, "p {k}"], Float32[np.ndarray, "p {k}"]]:
    """The `k` likeliest ids of each place, the likeliest first, after the probabilities of equal ids are added.

    Of equally likely ids the lower comes first. Ids below 0 are left out. Where fewer than `k` are left, the rest are
    id 0 with probability 0.

    Example:
      >>> add_up(np.array([[7, 3, 7, -1]]), np.array([[0.25, 0.375, 0.25, 0.125]]), 3)
      (array([[7, 3, 0]], dtype=int32), array([[0.5  , 0.375, 0.   ]], dtype=float32))
    """
    places, width = ids.shape
    order = np.argsort(ids, axis=1, kind="stable")
    ids = np.take_along_axis(ids, order, axis=1)
    probs = np.take_along_axis(probs, order, axis=1)
    first = np.ones(ids.shape, bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    starts = np.flatnonzero(first)
    sums = np.zeros(ids.size, np.float32)
    if starts.size:
        sums[starts] = np.add.reduceat(probs.ravel(), starts, dtype=np.float64)
    sums = np.where(ids < 0, 0, sums.reshape(ids.shape))
    order = np.argsort(-sums, axis=1, kind="stable")[:, :k]
    top = np.zeros((places, k), np.float32)
    top_ids = np.zeros((places, k), np.int32)
    kept = min(k, width)
    top[:, :kept] = np.take_along_axis(sums, order, axis=1)
    top_ids[:, :kept] = np.where(top[:, :kept] > 0, np.take_along_axis(ids, order, axis=1), 0)
    return top_ids, top
