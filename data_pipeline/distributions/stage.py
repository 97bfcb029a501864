"""Stage `distributions`: each source's likeliest tokens at every place of the chosen answers, with log-probabilities.

The records are in the source's own tokens, with the bytes where they end, so one data set serves every target. They
have the ids and the order of the SFT shards; answers that cannot be had in the source's tokens are left out, counted,
and listed with their reasons in `rejected/distributions-{source}-{split}.jsonl`.

Work is done in chunks of examples, each kept as a part file the moment it is done: a killed run loses one chunk. The
parts become shards in the end, read one by one: memory holds a chunk, whatever the size of the data. This machine does
all of it, also with `engine: ray`: one pass over the answers takes a small part of what sampling them took.
"""

import functools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import polars as pl
from etils import epath

from data_pipeline import stage_files
from data_pipeline.config import DistributionsConfig, PipelineConfig, SourceConfig
from data_pipeline.distributions import answers
from data_pipeline.distributions.answers import Answer, Reader, Refused
from data_pipeline.distributions.backend import Backend, Rows
from data_pipeline.distributions.opening import name_of, open_backend
from data_pipeline.sampling import checkpoint
from data_pipeline.sampling.answer_keys import MODEL_ARGUMENTS
from fusejax.common.cli import UserError, note
from fusejax.common.files import copy, write_text
from fusejax.common.progress import Progress
from fusejax.data import token_bytes
from fusejax.data.records import (
    MANIFEST,
    AnswerDistributions,
    RecordError,
    SFTExample,
    Shards,
    decode,
    encode,
    open_shards,
    write_shards,
)

CHUNK = 256
"""Examples per part file: the most that a killed run loses, and what memory holds."""
_PART = pl.Schema(
    {
        "id": pl.String(),
        "record": pl.Binary(),
        "tokens": pl.Int64(),
        "reason": pl.String(),
        "detail": pl.String(),
        "engine": pl.String(),
    }
)
"""Columns of a part file: a record, encoded, or why there is none."""


def run(config: PipelineConfig) -> None:
    """Writes `distributions/{source}/{split}-*` with a `manifest.json`, and
    `rejected/distributions-{source}-{split}.jsonl`.

    Raises:
      UserError: no SFT shards, or others; no such source; a source that cannot be loaded; or none of the answers can be
        had in a source's tokens.
    """
    section = config.distributions or DistributionsConfig()
    directories = locate(config)
    target = checkpoint.locate(section.target, weights=False) if section.target is not None else None
    data = open_shards(section.data or epath.Path(config.output_dir) / "sft" / "train")
    if data.kind != "sft":
        raise UserError(f"distributions.data: {data.name} is of kind {data.kind}, not sft")
    for source in config.sources:
        if source.name in directories:
            _Work(config, section, source, directories[source.name], target, data).run_once()


def locate(config: PipelineConfig) -> dict[str, Path]:
    """Name of each source that is asked -> where its checkpoint is on disk.

    Raises:
      UserError: the config names other sources than it has, one is behind a server, or a checkpoint is not found; or
        it has arguments that nothing would use.
    """
    section = config.distributions or DistributionsConfig()
    known = {source.name: source for source in config.sources}
    for name in section.sources:
        if name not in known:
            raise UserError(f"distributions.sources: {name!r} is none of the sources {', '.join(known)}")
    chosen = [known[name] for name in section.sources or known]
    if not chosen:
        raise UserError("distributions: there are no sources, only given answers")
    backends = {name_of(config, section, source) for source in chosen}
    if section.engine and "vllm" not in backends:
        raise UserError("distributions.engine: the backend transformers takes no engine arguments; leave them out")
    for source in chosen:
        if section.template == "target" and source.chat_template_kwargs:
            problem = f"the source {source.name} has chat_template_kwargs, which are its own template's"
            raise UserError(f"distributions.template: {problem}; leave them out, or take `template: own`")
    return {source.name: checkpoint.locate(source.model, source.revision) for source in chosen}


def asked_of(
    config: PipelineConfig, source: SourceConfig, directory: Path, reader: Reader, data: Shards, top_k: int
) -> str:
    """A hash of all that a source's numbers over some data depend on."""
    section = config.distributions or DistributionsConfig()
    engine = source.engine | section.engine
    return stage_files.fingerprint(
        source.name,
        checkpoint.revision(directory),
        [
            name_of(config, section, source),
            config.sampler.dtype,
            {k: engine[k] for k in MODEL_ARGUMENTS if k in engine},
        ],
        [reader.template, source.chat_template_kwargs, str(config.chat.date)],
        [reader.context, reader.end_of_turn, top_k],
        data.fingerprint,
        *map(Path, (answers.__file__, token_bytes.__file__)),
    )


class _Work:
    """One source."""

    def __init__(
        self,
        config: PipelineConfig,
        section: DistributionsConfig,
        source: SourceConfig,
        directory: Path,
        target: Path | None,
        data: Shards,
    ):
        self._config, self._section, self._source = config, section, source
        self._directory, self._data = directory, data
        self._backend_name = name_of(config, section, source)
        self._reader = Reader(source, directory, config.chat.date, target)
        self._top_k = min(section.top_k, self._reader.vocabulary)
        self._split = epath.Path(data.name).name
        self._output = epath.Path(config.output_dir)
        self._final = self._output / "distributions" / source.name
        self._step = f"distributions {source.name} {self._split}"

    def run_once(self) -> None:
        """Does the work, unless it was done with the same inputs."""
        asked = asked_of(self._config, self._source, self._directory, self._reader, self._data, self._top_k)
        inputs = stage_files.fingerprint(asked, self._config.write.model_dump(include={"format", "num_shards"}))
        parts = self._final.parent / ".parts" / f"{self._source.name}-{asked[:16]}"
        work = functools.partial(self._run, parts)
        stage_files.once(self._output, self._step, inputs, [self._final / MANIFEST], work)
        if parts.exists():
            parts.rmtree()

    def _run(self, folder: epath.Path) -> str:
        parts = {start: folder / f"{start:010d}.parquet" for start in range(0, len(self._data), CHUNK)}
        self._make([(start, part) for start, part in parts.items() if not part.exists()])
        sizes = pl.col("record").bin.size().alias("bytes")
        told = pl.concat([_read(part).with_columns(sizes).drop("record") for part in parts.values()])
        refused = told.filter(pl.col("reason").is_not_null())
        reasons = Counter(refused["reason"].to_list())
        lines = [
            json.dumps({"where": name, "reason": reason, "detail": detail}, ensure_ascii=False) + "\n"
            for name, reason, detail in refused.select("id", "reason", "detail").iter_rows()
        ]
        rejected_file = f"distributions-{self._source.name}-{self._split}.jsonl"
        write_text(self._output / "rejected" / rejected_file, "".join(lines))
        if len(refused) == len(told):
            raise UserError(
                f"sources: {self._source.name}: none of {len(told):,} answers can be had in its tokens, "
                f"for example {refused['id'][0]!r}: {refused['reason'][0]}: {refused['detail'][0]}"
            )
        whole = told["bytes"].is_not_null()
        records = _Kept(list(parts.values()), [int(whole[start : start + CHUNK].sum()) for start in parts])
        copy(self._reader.tokenizer_file, self._final / "tokenizer.json")
        write_shards(
            self._final,
            self._split,
            records,
            kind="distributions",
            format=self._config.write.format,
            num_shards=min(self._config.write.num_shards, len(records)),
            manifest=self._manifest(told, reasons),
        )
        why = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
        rejected = f"{len(refused):,} rejected" + (f" ({why})" if why else "")
        return f"{len(records):,} answers of {told['tokens'].sum():,} tokens, {told['bytes'].sum():,} bytes; {rejected}"

    def _make(self, missing: Sequence[tuple[int, epath.Path]]) -> None:
        """Makes the parts that are not there."""
        if not missing:
            return
        total = len(self._data)
        left = sum(min(CHUNK, total - start) for start, _ in missing)
        note(f"{self._step}: {left:,} of {total:,} answers to go through")
        backend = open_backend(
            self._backend_name,
            self._config,
            self._section,
            self._source,
            self._directory,
            self._reader.context,
            self._top_k,
        )
        try:
            with Progress(self._step, total, "answer", done=total - left) as progress:
                for start, part in missing:
                    rows = self._chunk(backend, range(start, min(start + CHUNK, total)))
                    stage_files.write_parquet(pl.DataFrame(rows, schema=_PART, orient="row"), part)
                    progress.add(len(rows))
        finally:
            backend.close()

    def _chunk(self, backend: Backend, indices: range) -> list[tuple[Any, ...]]:
        """Rows of a part file."""
        read = [_example(self._data, index) for index in indices]
        examples = [each for each in read if isinstance(each, SFTExample)]
        answered = self._reader.read(examples)
        rows = iter(backend.rows([answer.asked for answer in answered if isinstance(answer, Answer)]))
        answers_left = iter(answered)
        made: list[tuple[Any, ...]] = []
        for index, example in zip(indices, read, strict=True):
            if isinstance(example, Refused):
                made.append((f"#{index}", None, None, *example, backend.engine))
                continue
            answer = next(answers_left)
            found = self._encoded(example, answer, next(rows)) if isinstance(answer, Answer) else answer
            if isinstance(found, Refused):
                made.append((example.id, None, None, *found, backend.engine))
            else:
                made.append((example.id, *found, None, None, backend.engine))
        return made

    def _encoded(self, example: SFTExample, answer: Answer, rows: Rows) -> tuple[bytes, int] | Refused:
        """The record, and its tokens."""
        # Sums of probabilities may round to more than 1.
        logprobs, top = (np.minimum(each, 0).astype(np.float16) for each in (rows.logprobs[:-1], rows.top_logprobs))
        if not (np.isfinite(logprobs).all() and np.isfinite(top).all()):
            return Refused("non_finite", "a log-probability is not a finite number of float16")
        record = AnswerDistributions(
            id=example.id,
            dataset=example.dataset,
            domain=example.domain,
            source_model=self._source.name,
            tokens=answer.asked.tokens[answer.asked.first : -1],
            logprobs=logprobs,
            ends=answer.ends,
            top_ids=rows.top_ids.astype(np.uint32),
            top_logprobs=top,
        )
        return encode(record), len(record.tokens)

    def _manifest(self, told: pl.DataFrame, reasons: Counter[str]) -> dict[str, Any]:
        """What the trainer must know of the source, for each split: of other splits, what was said before."""
        path = self._final / MANIFEST
        before = json.loads(path.read_text()).get("distributions", {}) if path.exists() else {}
        facts = {
            "source": self._source.name,
            "model": self._source.model,
            "revision": checkpoint.revision(self._directory),
            "tokenizer_sha256": self._reader.tokenizer_sha256(),
            "template": self._section.template,
            "target": self._section.target,
            "top_k": self._top_k,
            "dtype": "float16",
            "model_dtype": self._config.sampler.dtype,
            "engine": ", ".join(sorted(set(told["engine"]))),
            "end_of_turn": self._reader.end_of_turn,
            "data": self._data.name,
            "data_fingerprint": self._data.fingerprint,
            "rejected": dict(sorted(reasons.items())),
        }
        return {"distributions": before | {self._split: facts}}


class _Kept(Sequence):  # not of `AnswerDistributions`: a run-time type checker would read one
    """The records of the part files; the part that was read last is in memory."""

    def __init__(self, parts: Sequence[epath.Path], counts: Sequence[int]):
        """Args: counts: records in each part."""
        self._parts = parts
        self._ends = np.cumsum(counts)
        self._held = -1
        self._records: list[bytes] = []

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, index: int) -> AnswerDistributions: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[AnswerDistributions]: ...
    def __getitem__(self, index: int | slice) -> AnswerDistributions | Sequence[AnswerDistributions]:
        if isinstance(index, slice):
            return [self[each] for each in range(len(self))[index]]
        index = range(len(self))[index]
        part = int(np.searchsorted(self._ends, index, side="right"))
        if part != self._held:
            self._records = _read(self._parts[part])["record"].drop_nulls().to_list()
            self._held = part
        record = decode(self._records[index - int(self._ends[part])], "distributions")
        assert isinstance(record, AnswerDistributions)
        return record


def _read(part: epath.Path) -> pl.DataFrame:
    return stage_files.read_parquet(part, list(_PART), made_by="distributions")


def _example(data: Shards, index: int) -> SFTExample | Refused:
    try:
        example = data[index]
    except RecordError as error:
        return Refused("bad_record", str(error))
    assert isinstance(example, SFTExample)
    return example
