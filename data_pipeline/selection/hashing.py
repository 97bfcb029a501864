"""Hashes of whole columns, as seeded random choices: they depend on the seed and the names alone, so that they are the
same on any machine and for any order of rows.

Polars' own `hash` changes between its versions, so a data set made anew could differ; this one does not.
"""

import numpy as np
import polars as pl

from data_pipeline.stage_files import stable_hash


def keys(seed: int, names: pl.Series) -> pl.Series:
    """A random 63-bit number for each text. Texts are hashed one by one, so pass distinct ones."""
    return pl.Series(names.name, [stable_hash(seed, name) for name in names], dtype=pl.UInt64)


def mix(*parts: pl.Series) -> pl.Series:
    """A random 64-bit number for each row of integer columns: splitmix64, chained over the columns."""
    mixed = np.zeros(len(parts[0]), np.uint64)
    for part in parts:
        mixed = (mixed ^ part.to_numpy().astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return pl.Series(mixed)


def share(numbers: pl.Series) -> pl.Series:
    """Random 64-bit numbers as fractions, at least 0 and below 1."""
    return pl.Series((numbers.to_numpy() >> np.uint64(11)) / 2.0**53)
