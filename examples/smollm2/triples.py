"""What `triples.yaml` reads: DPO's prompts, and the answers that stand in for the target's own."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fusejax.common.files import write_text
from fusejax.data.records import PreferencePair, open_shards

STAND_IN = ("gemma-2b-it", "Qwen-14B-Chat")
"""The two of `answers.MODELS` whose answers win the least often by GPT-4."""


def prepare(judged: Path, pairs: Path, folder: Path) -> None:
    """Writes `asked.jsonl`, the prompts of the pairs, and `stand-in.jsonl`, the rows of the models that stand in.

    Args:
      judged: what `answers.prepare` writes.
      pairs: shards, as DIR/SPLIT.
    """
    asked = [
        {"id": pair.id, "prompt": pair.prompt[-1]["content"]}
        for pair in open_shards(pairs)
        if isinstance(pair, PreferencePair)
    ]
    with gzip.open(judged, "rt", encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row["source_model"] in STAND_IN]
    for name, lines in (("asked", asked), ("stand-in", rows)):
        write_text(folder / f"{name}.jsonl", _json_lines(lines))


def _json_lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
