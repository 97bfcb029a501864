"""Stage `likelihoods`: the mean log-probability per token, under each source, of both answers of every pair.

Each source has its own tokens, and counts the one that ends its turn. An answer that cannot be had in them (see
`data_pipeline.distributions.answers`) has none: null in the table, counted, and listed with its reason in
`rejected/likelihoods-{source}-{split}.jsonl`.

Work is done in chunks of pairs, each kept as a part file the moment it is done: a killed run loses one chunk.
"""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from etils import epath

from data_pipeline import stage_files
from data_pipeline.config import DistributionsConfig, PipelineConfig, SourceConfig
from data_pipeline.distributions.answers import Answer, Reader, Refused
from data_pipeline.distributions.backend import Backend
from data_pipeline.distributions.opening import name_of, open_backend
from data_pipeline.distributions.stage import asked_of, locate
from data_pipeline.sampling import checkpoint
from fusejax.common.cli import UserError, note
from fusejax.common.files import local_copy, write_text
from fusejax.common.progress import Progress
from fusejax.data.records import MANIFEST, PreferencePair, RecordError, SFTExample, Shards, open_shards

_TOP_K = 1
"""The likeliest tokens are not used."""
CHUNK = 256
"""Pairs per part file: the most that a killed run loses."""
Side = Literal["chosen", "rejected"]
SIDES: tuple[Side, ...] = ("chosen", "rejected")
_ROW = {
    "id": pl.String(),
    "chosen": pl.Float64(),
    "rejected": pl.Float64(),
    "chosen_tokens": pl.Int32(),
    "rejected_tokens": pl.Int32(),
}
"""Columns of a table: means in nats, and over how many tokens, the end of the turn included."""
_PART = pl.Schema({**_ROW, **{f"{side}_{why}": pl.String() for side in SIDES for why in ("reason", "detail")}})


def run(config: PipelineConfig) -> None:
    """Writes `likelihoods/{source}/{split}.parquet` with a `manifest.json`, and
    `rejected/likelihoods-{source}-{split}.jsonl`.

    Raises:
      UserError: no preference shards, or others; no such source; a source that cannot be loaded; or none of the answers
        can be had in a source's tokens.
    """
    section = config.distributions or DistributionsConfig()
    directories = locate(config)
    target = checkpoint.locate(section.target, weights=False) if section.target is not None else None
    folder = epath.Path(section.pairs or epath.Path(config.output_dir) / "dpo")
    data = [open_shards(folder / split) for split in ("train", "eval") if split == "train" or _has(folder, split)]
    for shards in data:
        if shards.kind != "dpo":
            raise UserError(f"distributions.pairs: {shards.name} is of kind {shards.kind}, not dpo")
    for source in config.sources:
        if source.name in directories:
            reader = Reader(source, directories[source.name], config.chat.date, target)
            for shards in data:
                _Work(config, section, source, directories[source.name], reader, shards).run_once()


def _has(folder: epath.Path, split: str) -> bool:
    return any(folder.glob(f"{split}-*"))


class _Work:
    """One source and one split."""

    def __init__(
        self,
        config: PipelineConfig,
        section: DistributionsConfig,
        source: SourceConfig,
        directory: Path,
        reader: Reader,
        data: Shards,
    ):
        self._config, self._section, self._source = config, section, source
        self._directory, self._reader, self._data = directory, reader, data
        self._backend_name = name_of(config, section, source)
        self._split = epath.Path(data.name).name
        self._output = epath.Path(config.output_dir)
        self._final = self._output / "likelihoods" / source.name
        self._step = f"likelihoods {source.name} {self._split}"

    def run_once(self) -> None:
        """Does the work, unless it was done with the same inputs."""
        inputs = asked_of(self._config, self._source, self._directory, self._reader, self._data, _TOP_K)
        parts = self._final.parent / ".parts" / f"{self._source.name}-{self._split}-{inputs[:16]}"
        outputs = [self._final / f"{self._split}.parquet", self._final / MANIFEST]
        stage_files.once(self._output, self._step, inputs, outputs, functools.partial(self._run, parts))
        if parts.exists():
            parts.rmtree()

    def _run(self, folder: epath.Path) -> str:
        parts = {start: folder / f"{start:010d}.parquet" for start in range(0, len(self._data), CHUNK)}
        self._make([(start, part) for start, part in parts.items() if not part.exists()])
        told = pl.concat(
            [stage_files.read_parquet(part, list(_PART), made_by="likelihoods") for part in parts.values()]
        )
        refused = [
            {"where": row["id"], "answer": side, "reason": row[f"{side}_reason"], "detail": row[f"{side}_detail"]}
            for row in told.iter_rows(named=True)
            for side in SIDES
            if row[f"{side}_reason"] is not None
        ]
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in refused]
        rejected_file = f"likelihoods-{self._source.name}-{self._split}.jsonl"
        write_text(self._output / "rejected" / rejected_file, "".join(lines))
        if len(refused) == len(SIDES) * len(told) and self._split == "train":
            first = refused[0]
            raise UserError(
                f"sources: {self._source.name}: none of {len(refused):,} answers can be had in its tokens, "
                f"for example {first['where']!r}: {first['reason']}: {first['detail']}"
            )
        table = self._final / f"{self._split}.parquet"
        stage_files.write_parquet(told.select(list(_ROW)).filter(pl.col("id").is_not_null()), table)
        reasons = Counter(line["reason"] for line in refused)
        write_text(self._final / MANIFEST, json.dumps(self._manifest(table, reasons), indent=2) + "\n")
        why = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
        tokens = sum(int(told[f"{side}_tokens"].sum()) for side in SIDES)
        return f"{len(told):,} pairs of {tokens:,} tokens; {len(refused):,} answers left out" + (
            f" ({why})" if why else ""
        )

    def _make(self, missing: Sequence[tuple[int, epath.Path]]) -> None:
        """Makes the parts that are not there."""
        if not missing:
            return
        total = len(self._data)
        left = sum(min(CHUNK, total - start) for start, _ in missing)
        note(f"{self._step}: {left:,} of {total:,} pairs to go through")
        context = self._reader.context
        backend = open_backend(
            self._backend_name, self._config, self._section, self._source, self._directory, context, _TOP_K
        )
        try:
            with Progress(self._step, total, "pair", done=total - left) as progress:
                for start, part in missing:
                    rows = self._chunk(backend, range(start, min(start + CHUNK, total)))
                    stage_files.write_parquet(pl.DataFrame(rows, schema=_PART), part)
                    progress.add(len(rows))
        finally:
            backend.close()

    def _chunk(self, backend: Backend, indices: range) -> list[dict[str, Any]]:
        """Rows of a part file."""
        made: list[dict[str, Any]] = []
        rows_of: list[tuple[dict[str, Any], Side]] = []
        conversations: list[SFTExample] = []
        for index in indices:
            row: dict[str, Any] = dict.fromkeys(_PART)
            made.append(row)
            try:
                pair = self._data[index]
            except RecordError as error:
                for side in SIDES:
                    row[f"{side}_reason"], row[f"{side}_detail"] = "bad_record", str(error)
                continue
            assert isinstance(pair, PreferencePair)
            row["id"] = pair.id
            for side in SIDES:
                turns = getattr(pair, side)
                if len(turns) > 1:
                    detail = f"{len(turns)} turns after the prompt"
                    row[f"{side}_reason"], row[f"{side}_detail"] = "several_turns", detail
                    continue
                rows_of.append((row, side))
                turns = [*pair.prompt, *turns]
                conversations.append(SFTExample(pair.id, pair.dataset, pair.domain, pair.source_model, turns))
        wanted: list[tuple[dict[str, Any], Side, Answer]] = []
        for (row, side), found in zip(rows_of, self._reader.read(conversations), strict=True):
            if isinstance(found, Refused):
                row[f"{side}_reason"], row[f"{side}_detail"] = found
            else:
                wanted.append((row, side, found))
        found_rows = backend.rows([answer.asked for *_, answer in wanted])
        for (row, side, _), rows in zip(wanted, found_rows, strict=True):
            # Sums of probabilities may round to more than 1.
            mean = float(np.minimum(rows.logprobs, 0).mean(dtype=np.float64))
            if np.isfinite(mean):
                row[side], row[f"{side}_tokens"] = mean, len(rows.logprobs)
            else:
                row[f"{side}_reason"], row[f"{side}_detail"] = "non_finite", "a log-probability is not a finite number"
        return made

    def _manifest(self, table: epath.Path, reasons: Counter[str]) -> dict[str, Any]:
        """What the trainer must know of the source, for each split: of the other one, what was said before."""
        path = self._final / MANIFEST
        before = json.loads(path.read_text()).get("likelihoods", {}) if path.exists() else {}
        with local_copy(table) as local:
            sha256 = hashlib.sha256(local.read_bytes()).hexdigest()
        facts = {
            "source": self._source.name,
            "model": self._source.model,
            "revision": checkpoint.revision(self._directory),
            "tokenizer_sha256": self._reader.tokenizer_sha256(),
            "template": self._section.template,
            "target": self._section.target,
            "model_dtype": self._config.sampler.dtype,
            "data": self._data.name,
            "data_fingerprint": self._data.fingerprint,
            "sha256": sha256,
            "left_out": dict(sorted(reasons.items())),
        }
        return {"likelihoods": before | {self._split: facts}}
