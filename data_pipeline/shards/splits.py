"""Records split into training and evaluation, and written as one data set."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from etils import epath

from data_pipeline import stage_files
from data_pipeline.config import WriteConfig
from fusejax.common.files import temporary_folder
from fusejax.data.records import Kind, Record, move_shards, write_shards

KINDS: tuple[Kind, ...] = ("sft", "dpo", "wrpo")


def held_out(prompts: Mapping[str, Collection[str]], fraction: float, seed: int) -> set[str]:
    """Prompts held out for evaluation during training: a seeded share of each domain's, rounded up.

    Args:
      prompts: domain -> its prompts' names.
    """
    found: set[str] = set()
    for domain in sorted(prompts):
        ids = set(prompts[domain])
        ordered = sorted(ids, key=lambda prompt: (stage_files.stable_hash(seed, "eval", prompt), prompt))
        found |= set(ordered[: math.ceil(fraction * len(ids))])
    return found


def write_splits(
    output: epath.Path,
    kind: Kind,
    splits: Mapping[str, tuple[int, Iterable[Record]]],
    config: WriteConfig,
    manifest: dict[str, Any],
) -> list[str]:
    """Makes the splits the data set of `output/KIND`, and returns `KIND/SPLIT COUNT` of each.

    The old data set is deleted only when the new one is whole, with any split that the new one lacks; if there are no
    records, just so.

    Args:
      splits: name -> how many records, and these.
    """
    counts: list[str] = []
    with temporary_folder(output) as folder:
        for split, (count, records) in splits.items():
            if not count:
                continue
            write_shards(
                folder,
                split,
                records,
                kind=kind,
                format=config.format,
                num_shards=min(config.num_shards, count),
                manifest=manifest,
            )
            counts.append(f"{kind}/{split} {count:,}")
        if counts:
            move_shards(folder, output / kind)
        else:
            (output / kind).rmtree(missing_ok=True)
    return counts
