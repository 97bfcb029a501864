"""What source models say of pairs' responses, in place of a reference: for the loss `infifpo`.

The data pipeline's stage `likelihoods` writes, for each source, a table with the mean log-probability per token of
every response, in the source's own tokens, its end of turn included. Together with the starting model's own values,
which the reference pass gives, they become what the loss compares the policy with.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping

import numpy as np
import polars as pl
from etils import epath
from jaxtyping import Float
from pydantic import BaseModel, ValidationError

from fusejax.common.cli import UserError, one_line
from fusejax.common.files import local_copy
from fusejax.config import TrainConfig
from fusejax.data.examples import Tokenized
from fusejax.data.records import MANIFEST
from fusejax.objectives.losses import Fusion
from fusejax.training.reference import Reference

COLUMNS = {"id": pl.String, "chosen": pl.Float64, "rejected": pl.Float64}
"""Of a table, at least; the means are in nats, and null where the source's tokens cannot spell a response."""


class _Facts(BaseModel):
    """What must be known of a split's table."""

    source: str
    data_fingerprint: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class Likelihoods:
    """A source's table of a split."""

    source: str
    file: epath.Path
    sha256: str


def open_likelihoods(config: TrainConfig, fingerprints: Mapping[str, str]) -> dict[str, list[Likelihoods]]:
    """The tables of each split, one for each source; none for a loss that asks for none.

    Args:
      fingerprints: of the shards of each split.

    Raises:
      UserError: one is not as the stage writes it, is about other data, or is of a source that another one is of.
    """
    if config.fused_reference is None:
        return {}
    found: dict[str, list[Likelihoods]] = {}
    for split, fingerprint in fingerprints.items():
        data = epath.Path(getattr(config.data, split))
        found[split] = [_open(epath.Path(folder), data, fingerprint) for folder in config.fused_reference.sources]
        names = [each.source for each in found[split]]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"preference.sources: two are of the source {name}")
    return found


def identity_of(tables: Mapping[str, list[Likelihoods]]) -> dict[str, str]:
    """What a run depends on: a hash of each table."""
    return {f"{split} likelihoods of {each.source}": each.sha256 for split, many in tables.items() for each in many}


def _open(folder: epath.Path, data: epath.Path, fingerprint: str) -> Likelihoods:
    split = data.name
    try:
        facts = _Facts.model_validate(json.loads((folder / MANIFEST).read_text())["likelihoods"][split])
    except (OSError, ValueError, ValidationError, KeyError, TypeError) as error:
        raise UserError(
            f"preference.sources {folder} has nothing of {split} as the stage likelihoods writes it: {one_line(error)}"
        ) from None
    if facts.data_fingerprint != fingerprint:
        raise UserError(f"preference.sources {folder}: {split} is about other data than {data}: make it again")
    file = folder / f"{split}.parquet"
    try:
        found = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"preference.sources {file}: {error.strerror or error}") from None
    if found != facts.sha256:
        raise UserError(f"preference.sources {file} is not the one that its manifest is about (SHA-256)")
    return Likelihoods(facts.source, file, found)


def with_likelihoods(
    reference: Reference, tokenized: Tokenized, tables: list[Likelihoods], fusion: Fusion
) -> tuple[Reference, dict[str, int]]:
    """The reference with bounds of what the loss compares responses with, and how many pairs each source leaves out.

    The bounds are `chosen_low`, `chosen_high`, `rejected_low` and `rejected_high`, means over tokens in nats. A source
    that has no value of a response counts as one with the starting model's; so do all sources where the run's tokens
    are not those of the whole response, because it was cut at `max_length` or the template leaves out a part of it.

    Raises:
      UserError: a table is damaged, or lacks a pair.
    """
    ids = pl.DataFrame({"id": tokenized.ids})
    frames = {table.source: _read(table, ids) for table in tables}
    # Of the responses in their order in the tokens: chosen, then rejected.
    lengths = tokenized.target_counts.reshape(-1, 2)
    values = dict(reference.values)
    partly = {name for change in ("cut", "shortened") for name in tokenized.changes.get(change, ())}
    is_part = np.array([name in partly for name in tokenized.ids])
    for place, side in enumerate(("chosen", "rejected")):
        own = reference.values[side].astype(np.float64) / lengths[:, place]
        sources = np.stack([frame[side].to_numpy() for frame in frames.values()], axis=1).astype(np.float64)
        sources[is_part] = np.nan
        low, high = fuse(sources, own, fusion, chosen=side == "chosen")
        values |= {f"{side}_low": low.astype(np.float32), f"{side}_high": high.astype(np.float32)}
    unknown = {
        source: int(
            np.count_nonzero(is_part | frame["chosen"].is_null().to_numpy() | frame["rejected"].is_null().to_numpy())
        )
        for source, frame in frames.items()
    }
    return Reference(values), unknown


def fuse(
    sources: Float[np.ndarray, "N S"], reference: Float[np.ndarray, "N"], fusion: Fusion, *, chosen: bool
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """Clips the sources' values of N responses by the starting model's, and fuses them.

    Source: InfiFPO (arXiv:2505.13878).

    Args:
      sources: of each of S sources; NaN where it has none, which counts as the starting model's.
      reference: of the starting model.
      fusion: `max_margin` leaves the choice of a source to the loss; `mean` is that of the clipped values, and
        `confidence` weights them by `1 / (1e-6 - l)`, with a source's value l before it is clipped.
      chosen: whether these are the chosen responses, whose values are at least the reference's, or the rejected, at
        most.

    Returns:
      The smallest and the largest value that the loss may choose; the same one twice unless `max_margin`.
    """
    sources = np.where(np.isnan(sources), reference[:, None], sources)
    clipped = (np.maximum if chosen else np.minimum)(sources, reference[:, None])
    if fusion == "max_margin":
        return clipped.min(axis=1), clipped.max(axis=1)
    weights = 1 / (1e-6 - sources) if fusion == "confidence" else np.ones_like(sources)
    fused = (weights * clipped).sum(axis=1) / weights.sum(axis=1)
    return fused, fused


def _read(table: Likelihoods, ids: pl.DataFrame) -> pl.DataFrame:
    """The table's rows in the order of `ids`."""
    where = f"preference.sources {table.file}"
    try:
        with local_copy(table.file) as local:
            frame = pl.read_parquet(local, glob=False).select(list(COLUMNS)).cast(COLUMNS)  # type: ignore[arg-type]
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{where}: not a table of the stage likelihoods, or damaged: {one_line(error)}") from None
    means = frame.select(pl.col("chosen", "rejected"))
    wrong = means.select((pl.all().is_not_null() & ~(pl.all().is_finite() & (pl.all() <= 0))).any()).row(0)
    if any(wrong):
        raise UserError(f"{where}: a mean log-probability is above 0 or not finite")
    if frame["id"].is_duplicated().any():
        raise UserError(f"{where}: two rows have the id {frame.filter(frame['id'].is_duplicated())['id'][0]!r}")
    missing = ids.join(frame, on="id", how="anti")
    if len(missing):
        raise UserError(
            f"{where}: {len(missing):,} of {len(ids):,} pairs are not in it, for example {missing['id'][0]!r}"
        )
    return ids.join(frame, on="id", how="left", maintain_order="left")
