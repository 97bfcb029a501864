"""Rows of one data set to records, each with what it is drawn and held out by."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from data_pipeline import stage_files
from data_pipeline.importing import formats, known, turns
from data_pipeline.importing.config import ImportColumns, ImportDataConfig
from data_pipeline.importing.formats import Content, Format
from data_pipeline.importing.funnel import Funnel
from data_pipeline.prompts import reading
from data_pipeline.prompts.adapters import Rejected
from fusejax.common.cli import UserError, note
from fusejax.data.records import Kind, Message, PreferencePair, PreferenceTriple, Record, SFTExample

_KINDS = {"sft": "SFT", "dpo": "pairs", "wrpo": "triples"}
_SAMPLE = 100
"""Rows whose columns say what the format is; one row may lack some."""


@dataclass(frozen=True)
class Found:
    """A record that has passed the checks of its own row."""

    where: str
    record: Record
    content: str
    """A hash of what it says."""
    prompt: str
    """A hash of its prompt: all records of one prompt are held out together."""

    @property
    def asked(self) -> str:
        """What the user says."""
        return "\n".join(turn["content"] for turn in _said(self.record) if turn["role"] == "user")

    @property
    def text(self) -> str:
        return "\n".join(turn["content"] for turn in _said(self.record))


def _said(record: Record) -> list[Message]:
    if isinstance(record, SFTExample):
        return record.messages
    if isinstance(record, PreferenceTriple):
        return [*record.prompt, *record.source_chosen, *record.target_chosen, *record.rejected]
    return [*record.prompt, *record.chosen, *record.rejected]


class Seen:
    """What was read so far, to refuse copies and to give each record an id of its own."""

    def __init__(self) -> None:
        self._contents: set[str] = set()
        self._ids: set[str] = set()

    def refuse_again(self, content: str) -> None:
        if content in self._contents:
            raise Rejected("duplicate")
        self._contents.add(content)

    def own_id(self, name: str, dataset: str, content: str) -> str:
        """The row's id; with a part of the content's hash where there is none, or an earlier record has it."""
        found = name or f"{dataset}-{content[:16]}"
        if found in self._ids:
            found = f"{found}-{content[:16]}"
        self._ids.add(found)
        return found


def read(each: Funnel, key: str, seen: Seen) -> list[Found]:
    """The data set's records that are valid by themselves and new, in the order of its rows.

    Args:
      key: names the entry of the config in errors.

    Raises:
      UserError: there are no rows, or their columns fit no format or are not those that the config names.
    """
    entry = each.entry
    rows = _rows(entry, key)
    first = list(itertools.islice(rows, _SAMPLE))
    if not first:
        raise UserError(f"{key}: {entry.path}: empty data set")
    format = _format(entry, key, [row for _, row in first])
    each.format, each.kind = format.name, format.kind
    unseen = set(entry.columns.model_dump(exclude_none=True).values())
    found: list[Found] = []
    every: Iterator[tuple[str, Any]] = itertools.chain(first, rows)
    if format.kind == "dpo" and _are_triples(entry, [row for _, row in first]):
        every = _as_pairs(every, format)
    for where, row in every:
        each.read += 1
        try:
            if not isinstance(row, dict):
                raise Rejected("bad_json" if isinstance(row, str) else "not_an_object")
            if None in row:
                raise Rejected("too_many_cells")
            unseen -= row.keys()
            content = formats.read(row, format)
            answers = [side for side in (content.source_chosen, content.chosen) if side]
            said = stage_files.fingerprint(format.kind, content.prompt, *answers, content.rejected)
            weight = formats.weight(row.get(format.columns.get("weight", "")))
            seen.refuse_again(said)
        except Rejected as error:
            each.drop(where, error, row)
        else:
            names = _names(row, format, entry, each.dataset)
            names["id"] = seen.own_id(names["id"], names["dataset"], said)
            each.cut += content.cut
            prompt = stage_files.fingerprint(content.prompt or content.chosen[:-1])
            found.append(Found(where, _record(content, format.kind, names, weight), said, prompt))
    if unseen:
        raise UserError(f"{key}: {entry.path}: no row has the column {min(unseen)!r}")
    return found


def _rows(entry: ImportDataConfig, key: str) -> Iterator[tuple[str, Any]]:
    """The rows of the file or data set, those that stand for several taken apart, turns in cells of text read."""
    columns = tuple(entry.known.columns.values()) if entry.known else ()
    is_csv = epath.Path(entry.path.removesuffix(".gz")).suffix == ".csv"
    for where, row in reading.rows(entry, key, columns):
        if not isinstance(row, dict):
            yield where, row
            continue
        if is_csv:
            row = {name: json.loads(cell) if turns.is_turns(cell) else cell for name, cell in row.items()}
        yield from ((where, each) for each in (entry.known.rows(row) if entry.known else [row]))


def _format(entry: ImportDataConfig, key: str, rows: Sequence[Any]) -> Format:
    """The format, told in a line together with the columns that are not used."""
    present = list(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row if name is not None))
    if not present:
        what = "lines is a JSON object" if isinstance(rows[0], str) else "rows is an object with columns"
        raise UserError(f"{key}: {entry.path}: none of the first {len(rows)} {what}")
    columns, named = present, entry.columns
    kind: Kind | None = entry.kind or ("wrpo" if _are_triples(entry, rows) else None)
    if entry.known:
        there = {ours: theirs for ours, theirs in entry.known.columns.items() if theirs in present}
        columns, named, kind = list(there.values()), ImportColumns(**there), entry.known.kind
    try:
        format = formats.find_format(columns, named, kind)
    except formats.UnknownFormatError as error:
        raise UserError(f"{key}: {entry.path}: {error}") from None
    used = list(format.columns.values())
    unused = [name for name in present if name not in used]
    note(
        f"{entry.path}: {_KINDS[format.kind]}, {format.name} ({', '.join(used)})"
        + (f"; not used: {', '.join(unused)}" if unused else "")
    )
    return format


def _are_triples(entry: ImportDataConfig, rows: Sequence[Any]) -> bool:
    """Whether `chosen` holds two answers, and is what the config takes for chosen."""
    named = entry.columns
    as_usual = named.chosen in (None, "chosen") and named.completion is None and named.messages is None
    return entry.known is None and as_usual and formats.two_in_chosen(rows)


def _as_pairs(rows: Iterator[tuple[str, Any]], format: Format) -> Iterator[tuple[str, Any]]:
    """Of a triple its two pairs; other rows as they are."""
    for where, row in rows:
        triple = isinstance(row, dict) and turns.are_answers(row.get("chosen"), 2)
        yield from ((where, pair) for pair in (known.pairs(row, format.columns.get("id", "")) if triple else [row]))


def _names(row: Mapping[str, Any], format: Format, entry: ImportDataConfig, dataset: str) -> dict[str, str]:
    """The record's `id`, which may be "", `dataset`, `domain` and `source_model`."""
    of_row = {}
    for name in ("id", "dataset", "domain", "source_model"):
        value = row.get(format.columns.get(name, ""))
        text = str(value).strip() if isinstance(value, str | int) else ""
        of_row[name] = text.encode(errors="replace").decode()
    return {
        "id": of_row["id"],
        "dataset": entry.dataset or of_row["dataset"] or dataset,
        "domain": entry.domain or of_row["domain"] or "chat",
        "source_model": entry.source_model or of_row["source_model"] or "unknown",
    }


def _record(content: Content, kind: Kind, names: Mapping[str, Any], weight: float | None) -> Record:
    if kind == "sft":
        return SFTExample(**names, messages=content.chosen, weight=weight)
    if kind == "wrpo":
        return PreferenceTriple(
            **names,
            prompt=content.prompt,
            source_chosen=content.source_chosen,
            target_chosen=content.chosen,
            rejected=content.rejected,
            source_score=content.source_score,
            target_score=content.chosen_score,
            rejected_score=content.rejected_score,
        )
    return PreferencePair(
        **names,
        prompt=content.prompt,
        chosen=content.chosen,
        rejected=content.rejected,
        chosen_score=content.chosen_score,
        rejected_score=content.rejected_score,
        weight=weight,
    )
