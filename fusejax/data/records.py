"""The data format between the data pipeline and the trainer: what an example is, and the shards that hold examples.

A record is a `tf.train.Example` whose features are named after the fields: text as UTF-8 bytes, message lists as JSON
bytes, scores as floats, arrays as little-endian bytes. There are no token ids of the target model, so one data set
serves every target. Shards are ArrayRecord or TFRecord files `{split}-00000-of-00008.{arrayrecord,tfrecord}`;
`manifest.json` beside them holds counts, where the data came from and a SHA-256 for each shard, and reading checks it.
Imports neither JAX nor torch.

    write_shards("data/sft", "train", examples, kind="sft", num_shards=8, manifest={"config": ...})
    examples = open_shards("data/sft/train")
    examples[17].messages
"""

import bisect
import collections
import dataclasses
import hashlib
import itertools
import json
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, overload, runtime_checkable

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from etils.epath.typing import PathLike
from google.protobuf.message import DecodeError
from jaxtyping import Float16, Int32, UInt32
from pydantic import BaseModel, NonNegativeInt, ValidationError

from fusejax.common.cli import UserError, one_line
from fusejax.common.files import ROW_SUFFIXES, copy, is_remote, temporary_folder, write_text
from fusejax.data import tf_example, tfrecord

Kind = Literal["sft", "dpo", "wrpo", "distributions"]
Format = Literal["arrayrecord", "tfrecord"]
SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_TRANSFERS = 8
"""Shards sent or fetched at a time."""


class Message(TypedDict):
    """One turn: `role` is system, user or assistant."""

    role: str
    content: str


ROLES = ("system", "user", "assistant")


class RecordError(Exception):
    """A record that does not hold what its kind must hold; the reader counts it and goes on."""


@dataclasses.dataclass(frozen=True)
class SFTExample:
    """A conversation to imitate: every assistant turn is a target. A weight of None is 1."""

    id: str
    dataset: str
    domain: str
    source_model: str
    messages: list[Message]
    weight: float | None = None


@dataclasses.dataclass(frozen=True)
class PreferencePair:
    """Two answers of `source_model` to one prompt; `chosen` and `rejected` are the turns after it, mostly one.

    A score of None is none: nobody gave one. A weight of None is 1.
    """

    id: str
    dataset: str
    domain: str
    source_model: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    chosen_score: float | None = None
    rejected_score: float | None = None
    weight: float | None = None


@dataclasses.dataclass(frozen=True)
class PreferenceTriple:
    """Three answers to one prompt: the best of strong sources, and the target's own best and worst (WRPO).

    `source_model` gave `source_chosen`; the model that is trained gave the other two. Scores are of one reward model.
    """

    id: str
    dataset: str
    domain: str
    source_model: str
    prompt: list[Message]
    source_chosen: list[Message]
    target_chosen: list[Message]
    rejected: list[Message]
    source_score: float | None = None
    target_score: float | None = None
    rejected_score: float | None = None


@dataclasses.dataclass(frozen=True)
class AnswerDistributions:
    """What a source model would have said at each place of an answer, in the source's own tokens.

    The answer is the last assistant turn of the SFT example with this id, n tokens long in the source's tokenizer and
    followed by what ends the turn. Row j of the top ones is the distribution of what comes after the first `ends[j]`
    bytes of the answer, so the last row is about the end of the turn. Log-probabilities are of the full vocabulary, in
    nats, at temperature 1, the highest first.
    """

    id: str
    dataset: str
    domain: str
    source_model: str
    tokens: Int32[np.ndarray, "n"]
    """The source's token ids of the answer."""
    logprobs: Float16[np.ndarray, "n"]
    """Log-probability of each of them."""
    ends: Int32[np.ndarray, "n_plus_1"]
    """Bytes of the answer, as UTF-8, before each token, and of all of them: 0 first."""
    top_ids: UInt32[np.ndarray, "n_plus_1 K"]
    """Ids of the K likeliest tokens."""
    top_logprobs: Float16[np.ndarray, "n_plus_1 K"]


Record = SFTExample | PreferencePair | PreferenceTriple
"""What can be trained on."""
Stored = Record | AnswerDistributions
CLASSES: dict[Kind, type[SFTExample] | type[PreferencePair] | type[PreferenceTriple] | type[AnswerDistributions]] = {
    "sft": SFTExample,
    "dpo": PreferencePair,
    "wrpo": PreferenceTriple,
    "distributions": AnswerDistributions,
}
ANSWERS: dict[Kind, tuple[str, ...]] = {
    "sft": (),
    "dpo": ("chosen", "rejected"),
    "wrpo": ("source_chosen", "target_chosen", "rejected"),
    "distributions": (),
}
"""The fields of the answers that are compared, in the order of their sequences; the last is the rejected one."""
_ARRAYS = {"tokens": "<i4", "logprobs": "<f2", "ends": "<i4", "top_ids": "<u4", "top_logprobs": "<f2"}
"""Dtypes of `AnswerDistributions`, as they are stored."""


def encode(record: Stored) -> bytes:
    """The record as serialised `tf.train.Example`.

    Raises:
      RecordError: a field has the wrong type, a turn is malformed, or a text is not valid Unicode.
    """
    example = tf_example.Example()
    if isinstance(record, AnswerDistributions):
        _check_distributions(record)
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if value is None and _is_number(field):
            continue
        _check(record.id, field, value)
        feature = example.features.feature[field.name]
        if _is_number(field):
            feature.float_list.value.append(value)
        elif field.name in _ARRAYS:
            feature.bytes_list.value.append(value.astype(_ARRAYS[field.name]).tobytes())
        elif field.type is str:
            feature.bytes_list.value.append(value.encode())
        else:
            feature.bytes_list.value.append(json.dumps(value, ensure_ascii=False).encode())
    return example.SerializeToString(deterministic=True)


def decode(data: bytes, kind: Kind) -> Stored:
    """The inverse of `encode`. Scores come back in float32 precision, or as None where there is none; features of other
    names are ignored.

    Raises:
      RecordError: not a `tf.train.Example`, or a field is missing or malformed.
    """
    try:
        features = tf_example.Example.FromString(data).features.feature
    except DecodeError:
        raise RecordError("not a tf.train.Example") from None
    name = _text(features, "id") if "id" in features else "?"
    values: dict[str, Any] = {}
    for field in dataclasses.fields(CLASSES[kind]):
        if field.name not in features:
            if _is_number(field):
                continue
            raise RecordError(f"record {name!r}: no field {field.name!r}")
        if _is_number(field):
            values[field.name] = _only(features[field.name].float_list.value, field.name)
        elif field.name in _ARRAYS:
            values[field.name] = _array(features, name, field.name)
        elif field.type is str:
            values[field.name] = _text(features, field.name)
        else:
            try:
                values[field.name] = json.loads(_text(features, field.name))
            except json.JSONDecodeError:
                raise RecordError(f"record {name!r}: {field.name} is not JSON") from None
        _check(name, field, values[field.name])
    if kind == "distributions":
        places = len(values["ends"])
        for array in ("top_ids", "top_logprobs"):
            if not places or len(values[array]) % places:
                raise RecordError(f"record {name!r}: {array} is not one row for each of {places} places")
            values[array] = values[array].reshape(places, -1)
        _check_distributions(AnswerDistributions(**values))
    return CLASSES[kind](**values)


def write_shards(
    directory: PathLike,
    split: str,
    examples: Iterable[Stored],
    *,
    kind: Kind,
    format: Format = "arrayrecord",
    num_shards: int,
    manifest: dict[str, Any],
) -> epath.Path:
    """Writes the examples, in order, as one split of a data set, and returns the path of its `manifest.json`.

    An earlier version of the split, whatever its format or number of shards, is replaced when the new one is whole;
    see `move_shards`. Other splits of the directory stay.

    Args:
      directory: where the shards lie, local or `gs://`; made if need be.
      split: the name to read them by: `open_shards(f"{directory}/{split}")`.
      examples: all of `kind`. Of a sequence, each is asked for once and not kept: it may be read or made then.
      num_shards: files to spread them over, evenly; there can be empty ones.
      manifest: what else `manifest.json` should say, under keys of the caller's choice (config, models, sampling).

    Raises:
      RecordError: an example cannot be encoded; nothing is written then.
    """
    directory = epath.Path(directory)
    if not isinstance(examples, Sequence):
        examples = list(examples)
    counts = {name: collections.Counter[str]() for name in ("dataset", "domain", "source_model")}
    weighted = False

    def encoded(index: int) -> bytes:
        nonlocal weighted
        example = examples[index]
        if type(example) is not CLASSES[kind]:
            raise TypeError(f"a data set of kind {kind} cannot hold {example!r}")
        for name, counter in counts.items():
            counter[getattr(example, name)] += 1
        weighted = weighted or getattr(example, "weight", None) is not None
        return encode(example)

    with temporary_folder(directory) as folder:
        entries = []
        for shard_index in range(num_shards):
            start, stop = (len(examples) * i // num_shards for i in (shard_index, shard_index + 1))
            shard = folder / f"{split}-{shard_index:05d}-of-{num_shards:05d}.{format}"
            _write_shard(shard, map(encoded, range(start, stop)), format)
            entries.append({"file": shard.name, "sha256": _sha256(shard), "examples": stop - start})
        old = _manifest(directory)
        splits = old.get("splits", {}) | {
            split: {
                "kind": kind,
                "format": format,
                "examples": len(examples),
                **({"weighted": True} if weighted else {}),
                **{f"by_{name}": dict(sorted(counter.items())) for name, counter in counts.items()},
                "shards": entries,
            }
        }
        new = {**old, **manifest, "schema_version": SCHEMA_VERSION, "splits": splits}
        write_text(folder / MANIFEST, json.dumps(new, indent=2, ensure_ascii=False) + "\n")
        move_shards(folder, directory)
    return directory / MANIFEST


def move_shards(folder: Path, directory: PathLike) -> None:
    """Makes the shards and the manifest in `folder` the data set of `directory`, local or `gs://`.

    The manifest is moved last: a reader before that finds that a hash does not match. Then the shards that only the old
    manifest lists are deleted. Shards that the new one lists but `folder` does not hold are kept.
    """
    directory = epath.Path(directory)
    old, new = _listed(_manifest(directory)), _listed(_manifest(folder))

    def move(name: str) -> None:
        if is_remote(directory):
            copy(folder / name, directory / name)
        else:
            (folder / name).replace(directory / name)

    directory.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        list(pool.map(move, [name for name in sorted(new) if (folder / name).exists()]))
    move(MANIFEST)
    for name in old - new:
        (directory / name).unlink(missing_ok=True)


class _Shard(BaseModel):
    """As `manifest.json` lists a shard."""

    file: str
    sha256: str
    examples: NonNegativeInt


class _Split(BaseModel):
    """What reading needs of a split's entry in `manifest.json`."""

    kind: Kind
    format: Format
    examples: NonNegativeInt
    shards: list[_Shard]
    weighted: bool = False


@runtime_checkable
class _Reader(Protocol):
    """One file's records."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> bytes: ...


class Shards(Sequence):  # not `Sequence[Record]`: a run-time type checker would read a record, maybe a bad one
    """The examples of one split, read and decoded when asked for. Threads may share it, and processes get it pickled.

    Indexing raises `RecordError` for a record that is whole on disk but malformed.
    """

    def __init__(self, name: str, kind: Kind, fingerprint: str, readers: Sequence[_Reader], *, weighted: bool = False):
        self.name = name
        """As given to `open_shards`."""
        self.kind: Kind = kind
        self.fingerprint = fingerprint
        """A hash of the contents of all shards: the key of everything cached from this data set."""
        self.weighted = weighted
        """Whether any example has a weight."""
        self._readers = readers
        self._ends = list(itertools.accumulate(map(len, readers)))

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> Stored: ...
    @overload
    def __getitem__(self, index: slice) -> list[Stored]: ...
    def __getitem__(self, index: int | slice) -> Stored | list[Stored]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        which = bisect.bisect_right(self._ends, index)
        before = self._ends[which - 1] if which else 0
        return decode(self._readers[which][index - before], self.kind)


def open_shards(source: PathLike) -> Shards:
    """Opens `DIR/SPLIT`: the shards that `DIR/manifest.json` lists for that split.

    Readers need files on disk. Shards in `gs://` are copied, once, to `$XDG_CACHE_HOME/fusejax/shards` (by default
    below `~/.cache`), named after their SHA-256: whatever happens to the data set, a copy is never stale, and a run
    that starts again finds the copies of the attempt before.

    Raises:
      UserError: no manifest, no such split, a shard that is missing or differs from its SHA-256, or no examples; or it
        names rows, of which shards are yet to be made.
    """
    path = epath.Path(source)
    directory, split = path.parent, path.name
    _refuse_rows(path)
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        version, splits = manifest["schema_version"], dict(manifest["splits"])
    except OSError:
        hint = f"; give {source}/SPLIT" if (path / MANIFEST).exists() else ""
        raise UserError(f"data {source}: no manifest.json in {directory}{hint}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"data {source}: {directory}/manifest.json is not a data set's manifest: {error!r}") from None
    if version != SCHEMA_VERSION:
        raise UserError(f"data {source}: schema version {version}, but this program reads {SCHEMA_VERSION}")
    if split not in splits:
        raise UserError(f"data {source}: no split {split!r} in {directory}, which has {', '.join(splits) or 'none'}")
    try:
        entry = _Split.model_validate(splits[split])
    except ValidationError as error:
        raise UserError(f"data {source}: {directory}/manifest.json, split {split!r}: {one_line(error)}") from None
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        found = list(pool.map(lambda shard: _verified(directory / shard.file, shard.sha256), entry.shards))
    for shard, verified in zip(entry.shards, found, strict=True):
        if isinstance(verified, str):
            raise UserError(f"data {source}: shard {directory / shard.file} {verified}: write the data set again")
    if not entry.examples:
        raise UserError(f"data {source}: the data set is empty")
    paths = [file for shard, file in zip(entry.shards, found, strict=True) if shard.examples]
    try:
        readers: list[Any]
        if entry.format == "arrayrecord":
            readers = [ArrayRecordDataSource([str(file) for file in paths])]
        else:
            readers = [tfrecord.Reader(Path(file)) for file in paths]
    except tfrecord.CorruptError as error:
        raise UserError(f"data {source}: {error}") from None
    hashes = "".join(shard.sha256 for shard in entry.shards)
    fingerprint = hashlib.sha256(hashes.encode()).hexdigest()
    return Shards(str(source), entry.kind, fingerprint, readers, weighted=entry.weighted)


def _refuse_rows(path: epath.Path) -> None:
    """Raises `UserError` where a file or a folder of rows is named, of which shards are yet to be made."""
    what = "a file of rows, not shards" if path.name.endswith(ROW_SUFFIXES) else None
    if not is_remote(path):
        if path.is_dir() and not (path / MANIFEST).exists():
            has_rows = any(file.name.endswith(ROW_SUFFIXES) for file in path.iterdir())
            what = "a folder of rows, not shards" if has_rows else None
        elif not path.parent.exists() and re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(path)):
            what = "no such shards, but perhaps a data set of the Hub"
    if what is not None:
        command = f"python -m data_pipeline import {shlex.quote(str(path))} --output DIR"
        shards = "DIR/sft/train, DIR/dpo/train or DIR/wrpo/train"
        raise UserError(f"data {path}: {what}: run `{command}`, then name {shards}")


def _verified(path: epath.Path, sha256: str) -> Path | str:
    """A local file with the shard's contents, checked against its hash; or, as text, what is wrong with the shard."""
    local = Path(path)
    if is_remote(path):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        local = cache / "fusejax" / "shards" / f"{sha256}{path.suffix}"
        if local.exists() and _sha256(local) == sha256:
            return local
    try:
        if is_remote(path):
            copy(path, local)
        found = _sha256(local)
    except FileNotFoundError:
        return "is missing"
    return local if found == sha256 else "is truncated or altered (SHA-256)"


def _manifest(directory: PathLike) -> dict[str, Any]:
    """What the manifest there says; nothing if there is none."""
    path = epath.Path(directory) / MANIFEST
    return json.loads(path.read_text()) if path.exists() else {}


def _listed(manifest: dict[str, Any]) -> set[str]:
    """File names of the shards of all splits."""
    return {shard["file"] for split in manifest.get("splits", {}).values() for shard in split["shards"]}


def _write_shard(path: Path, records: Iterable[bytes], format: Format) -> None:
    if format == "tfrecord":
        tfrecord.write(path, records)
        return
    writer = ArrayRecordWriter(str(path), "group_size:1")  # one record a chunk: fast random access
    for record in records:
        writer.write(record)
    writer.close()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_number(field: dataclasses.Field) -> bool:
    return field.type == float | None


def _check_distributions(found: AnswerDistributions) -> None:
    """Raises `RecordError` unless sizes agree, `ends` rise, and log-probabilities are numbers that fall in each row."""
    count, places, top = len(found.tokens), len(found.ends), found.top_logprobs
    sizes = (len(found.logprobs), places, *found.top_ids.shape, *top.shape)
    if sizes != (count, count + 1, *(count + 1, top.shape[1]) * 2) or not top.shape[1]:
        raise RecordError(f"record {found.id!r}: arrays are of different sizes: {count} tokens, {places} places")
    if found.ends[0] != 0 or (np.diff(found.ends) < 0).any():
        raise RecordError(f"record {found.id!r}: ends do not rise from 0")
    if not all((array <= 0).all() for array in (found.logprobs, top)) or not np.isfinite(top[:, 0]).all():
        raise RecordError(f"record {found.id!r}: a log-probability is above 0, or not a number")
    if (np.diff(top, axis=1) > 0).any():
        raise RecordError(f"record {found.id!r}: top_logprobs do not fall")


def _check(name: object, field: dataclasses.Field, value: Any) -> None:
    if field.name in _ARRAYS:
        return
    if field.type is str or _is_number(field):
        # A whole number is a fine score; anything else must be what it says.
        expected, kinds = ("float", (int, float)) if _is_number(field) else ("str", (str,))
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise RecordError(f"record {name!r}: {field.name} is {type(value).__name__}, not {expected}")
        if isinstance(value, str):
            _check_unicode(name, field, value)
        return
    if not isinstance(value, list) or not value:
        raise RecordError(f"record {name!r}: {field.name} is not a list of at least one turn")
    for turn in value:
        if not isinstance(turn, dict) or turn.keys() != {"role", "content"}:
            raise RecordError(f"record {name!r}: a turn of {field.name} has not exactly the keys role and content")
        if turn["role"] not in ROLES or not isinstance(turn["content"], str):
            raise RecordError(f"record {name!r}: a turn of {field.name} has role {turn['role']!r} or no text")
        _check_unicode(name, field, turn["content"])


def _check_unicode(name: object, field: dataclasses.Field, text: str) -> None:
    """JSON can hold half of a surrogate pair, which is no text and breaks tokenizers."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecordError(f"record {name!r}: {field.name} is not valid Unicode: {error.reason}") from None


def _array(features: Any, name: object, field: str) -> np.ndarray:
    data, dtype = _only(features[field].bytes_list.value, field), np.dtype(_ARRAYS[field])
    if len(data) % dtype.itemsize:
        raise RecordError(f"record {name!r}: {field} has {len(data)} bytes, not whole values of {dtype}")
    return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))


def _text(features: Any, name: str) -> str:
    try:
        return _only(features[name].bytes_list.value, name).decode()
    except UnicodeDecodeError:
        raise RecordError(f"{name} is not UTF-8") from None


def _only(values: Any, name: str) -> Any:
    if len(values) != 1:
        raise RecordError(f"{name} has {len(values)} values, not one")
    return values[0]
