"""Stage `prompts`: files and Hub data sets to one checked table, `prompts.parquet`.

Every record becomes either a row, or a line of `rejected/prompts.jsonl` with its reason. `prompts_funnel.json` counts
both for each entry of the config:

    {"path", "dataset", "domain", "read": 20324, "dropped": {"topic_code": 310, "duplicate_prompt": ...}, "kept": 9435}

Prompts are drawn (where there is a `limit`) and written in a random order: that of a hash of the seed and the prompt's
id. So the first rows of the table are a fair sample of it, and adding prompts changes few of those drawn.
"""

import codecs
import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pydantic
from etils import epath

from data_pipeline import stage_files
from data_pipeline.config import OverlapConfig, PipelineConfig, PromptsConfig
from data_pipeline.domains import VERIFIERS
from data_pipeline.prompts import adapters, reading
from data_pipeline.prompts.adapters import Rejected
from data_pipeline.prompts.overlap import EvaluationNgrams, NearDuplicates
from fusejax.common.cli import UserError
from fusejax.common.files import replacing, write_text

_MESSAGE = pl.Struct([pl.Field("role", pl.String), pl.Field("content", pl.String)])
_COLUMNS: dict[str, Any] = {
    "id": pl.String,
    "dataset": pl.String,
    "domain": pl.String,
    "messages": pl.List(_MESSAGE),
    "answer": pl.String,
    "tests": pl.List(pl.String),
}
SCHEMA = pl.Schema(_COLUMNS)
FUNNEL = "prompts_funnel.json"


def run(config: PipelineConfig) -> None:
    """Writes `prompts.parquet`, `prompts_funnel.json` and `rejected/prompts.jsonl`.

    Raises:
      UserError: there are none to read, a file is missing or unreadable, has no such column, or yields no prompt.
    """
    if not config.prompts:
        raise UserError("prompts: there are none; name the data sets to take them from")
    output = epath.Path(config.output_dir)
    table, funnel, rejected = output / "prompts.parquet", output / FUNNEL, output / "rejected" / "prompts.jsonl"
    fingerprint = stage_files.fingerprint(
        config.model_dump(mode="json", include={"prompts", "overlap", "seed"}),
        {name: domain.verifier for name, domain in config.domains.items()},
        *(file for entry in (*config.prompts, *config.overlap.evaluation_sets) for file in reading.files(entry)),
    )

    def work() -> str:
        with replacing(rejected) as file:
            # A record's text can hold half of a surrogate pair, which UTF-8 cannot.
            rows, counts = _read_all(config, _Rejections(codecs.getwriter("utf-8")(file, "replace")))
            stage_files.write_parquet(pl.DataFrame(rows, schema=SCHEMA), table)
        write_text(funnel, json.dumps([entry.as_dict() for entry in counts], ensure_ascii=False, indent=1) + "\n")
        reasons = sum((entry.dropped for entry in counts), Counter[str]())
        return f"{len(rows):,} prompts, {reasons.total():,} rejected" + (f" {dict(reasons)}" if reasons else "")

    stage_files.once(output, "prompts", fingerprint, [table, funnel, rejected], work)


def check_domains(config: PipelineConfig, found: pl.Series) -> None:
    """Raises `UserError` if `prompts.parquet`, which another program may have written, has a domain unknown here."""
    unknown = sorted(set(found) - config.domains.keys())
    if unknown:
        path = epath.Path(config.output_dir) / "prompts.parquet"
        raise UserError(f"{path}: unknown domain {unknown[0]!r}; the domains are {', '.join(config.domains)}")


@dataclass
class _Found:
    """A prompt that has passed the checks of its own entry."""

    where: str
    row: dict[str, Any]


class _Funnel:
    """How many records of one entry of the config were read, dropped for each reason, and kept."""

    def __init__(self, entry: PromptsConfig):
        self._entry = entry
        self.read = 0
        self.dropped: Counter[str] = Counter()

    def as_dict(self) -> dict[str, Any]:
        names = self._entry.model_dump(include={"path", "dataset", "domain"})
        kept = self.read - self.dropped.total()
        return {**names, "read": self.read, "dropped": dict(self.dropped.most_common()), "kept": kept}


class _Rejections:
    """Writes rejected records as they come, and counts them."""

    def __init__(self, file: codecs.StreamWriter):
        self._file = file

    def add(self, funnel: _Funnel, where: str, error: Rejected, record: Any = None) -> None:
        line = {"where": where, "reason": error.reason, "detail": error.detail, "record": record}
        self._file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        funnel.dropped[error.reason] += 1


def _read_all(config: PipelineConfig, rejections: _Rejections) -> tuple[list[dict[str, Any]], list[_Funnel]]:
    """The rows of the table in their order, and each entry's counts."""
    refuse_overlap = _OverlapCheck(config.overlap)
    kept: list[_Found] = []
    funnels: list[_Funnel] = []
    seen = _Seen()
    for entry in config.prompts:
        funnels.append(_Funnel(entry))
        found = _in_order(_read_entry(config, entry, seen, funnels[-1], rejections), config.seed)
        before = len(kept)
        for prompt in found:
            try:
                if entry.limit is not None and len(kept) - before >= entry.limit:
                    raise Rejected("over_limit", prompt.row["id"])
                refuse_overlap(prompt.row)
            except Rejected as error:
                rejections.add(funnels[-1], prompt.where, error)
            else:
                kept.append(prompt)
        if len(kept) == before:
            reason, _ = funnels[-1].dropped.most_common(1)[0]
            read = funnels[-1].read
            raise UserError(f"prompts: {entry.path}: all {read} records are rejected, mostly for {reason}")
    return [prompt.row for prompt in _in_order(kept, config.seed)], funnels


def _in_order(found: list[_Found], seed: int) -> list[_Found]:
    return sorted(
        found, key=lambda prompt: (stage_files.stable_hash(seed, "prompt", prompt.row["id"]), prompt.row["id"])
    )


class _Seen:
    """Ids and conversations so far, to refuse duplicates."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._contents: set[bytes] = set()
        self._entries: Counter[str] = Counter()

    def prefix(self, dataset: str) -> str:
        """Prefix of the ids of an entry's prompts: two files of the same data set get different ones."""
        self._entries[dataset] += 1
        return dataset if self._entries[dataset] == 1 else f"{dataset}.{self._entries[dataset]}"

    def refuse_again(self, row: dict[str, Any]) -> None:
        """Raises `Rejected` for an id or a conversation that was there already, in the same domain."""
        content = bytes.fromhex(stage_files.fingerprint(row["domain"], row["messages"]))
        if content in self._contents:
            raise Rejected("duplicate_prompt", row["id"])
        if row["id"] in self._ids:
            raise Rejected("duplicate_id", row["id"])
        self._ids.add(row["id"])
        self._contents.add(content)


def _read_entry(
    config: PipelineConfig, entry: PromptsConfig, seen: _Seen, funnel: _Funnel, rejections: _Rejections
) -> list[_Found]:
    """The entry's prompts that are valid by themselves and new, in the order of the file."""
    adapter = adapters.ADAPTERS[entry.adapter_name] if entry.adapter_name else None
    columns = adapter.columns if adapter else tuple(entry.columns.model_dump(exclude_none=True).values())
    unseen = set(columns)
    prefix = seen.prefix(entry.dataset)
    found: list[_Found] = []
    for where, record in reading.rows(entry, "prompts", adapter.columns if adapter else ()):
        funnel.read += 1
        if isinstance(record, dict):
            unseen -= record.keys()
        try:
            if not isinstance(record, dict):
                raise Rejected("bad_json" if isinstance(record, str) else "not_an_object")
            values = adapter.read(record) if adapter else _named_columns(record, entry)
            row = _prompt(values, entry, config)
            if row["id"] is None:
                # With an adapter, the id is a hash of the text: nothing guarantees the order of a public data set.
                of_text = stage_files.fingerprint(row["messages"])[:16]
                row["id"] = f"{entry.dataset}-{of_text}" if adapter else f"{prefix}-{funnel.read - 1}"
            seen.refuse_again(row)
        except Rejected as error:
            rejections.add(funnel, where, error, record)
        else:
            found.append(_Found(where, row))
    if not funnel.read:
        raise UserError(f"prompts: {entry.path}: empty data set")
    if unseen:
        raise UserError(f"prompts: {entry.path}: no record has the column {min(unseen)!r}")
    return found


def _named_columns(record: dict[str, Any], entry: PromptsConfig) -> dict[str, Any]:
    """The record's values under our column names, by the config's `columns`."""
    columns = {ours: theirs or ours for ours, theirs in entry.columns.model_dump().items()}
    # `input` is a common name with many meanings, so it is read only where the config names it.
    values = {ours: record.get(theirs) for ours, theirs in (columns | {"input": entry.columns.input}).items()}
    more = values.pop("input")
    if isinstance(values["prompt"], str) and values["prompt"].strip() and isinstance(more, str) and more.strip():
        values["prompt"] = f"{values['prompt']}\n\n{more}"
    return values


def _from_cell(value: Any) -> Any:
    """A list that a CSV file holds as text, in JSON; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value


class _Message(pydantic.BaseModel):
    role: str
    content: str


_MESSAGES = pydantic.TypeAdapter(list[_Message])


def _prompt(values: dict[str, Any], entry: PromptsConfig, config: PipelineConfig) -> dict[str, Any]:
    """A row of `SCHEMA`, whose id may be None. Raises `Rejected`."""
    messages = _from_cell(values.get("messages"))
    if messages is None:
        text = values.get("prompt")
        if not isinstance(text, str) or not text.strip():
            raise Rejected("no_prompt")
        messages = [{"role": "user", "content": text}]
    try:
        messages = [message.model_dump() for message in _MESSAGES.validate_python(messages)]
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        raise Rejected("bad_messages", f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
    roles = [message["role"] for message in messages]
    if set(roles) - {"system", "user", "assistant"}:
        raise Rejected("bad_messages", f"roles {', '.join(roles)}")
    if not roles or roles[-1] != "user" or not messages[-1]["content"].strip():
        raise Rejected("no_user_turn", f"roles {', '.join(roles)}")
    answer, tests = values.get("answer"), _from_cell(values.get("tests"))
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if answer is not None and not isinstance(answer, str):
        raise Rejected("bad_answer", f"{type(answer).__name__}, not text")
    tests = [tests] if isinstance(tests, str) else tests
    if tests is not None and not (isinstance(tests, list) and all(isinstance(test, str) for test in tests)):
        raise Rejected("bad_tests", "not a list of texts")
    needed = VERIFIERS.get(config.domains[entry.domain].verifier or "")
    if needed == "answer" and not (answer and answer.strip()):
        raise Rejected("no_answer")
    if needed == "tests" and not tests:
        raise Rejected("no_tests")
    row = {
        "id": None if values.get("id") is None else str(values["id"]),
        "dataset": entry.dataset,
        "domain": entry.domain,
        "messages": messages,
        "answer": answer,
        "tests": tests,
    }
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Rejected("bad_unicode") from None
    return row


class _OverlapCheck:
    """Refuses prompts that overlap with evaluation sets, and near duplicates of earlier accepted prompts."""

    def __init__(self, config: OverlapConfig):
        self._evaluation = evaluation_ngrams(config)
        self._near = NearDuplicates(config.near_duplicates) if config.near_duplicates is not None else None

    def __call__(self, row: dict[str, Any]) -> None:
        asked = "\n".join(message["content"] for message in row["messages"] if message["role"] == "user")
        if match := self._evaluation.find(asked):
            raise Rejected(f"contaminated: {match[0]}", f"{row['id']}: {match[1]}")
        if self._near and (other := self._near.add(row["id"], asked)):
            raise Rejected("near_duplicate", f"{row['id']}: of {other}")


def evaluation_ngrams(config: OverlapConfig) -> EvaluationNgrams:
    """What the evaluation sets hold.

    Raises:
      UserError: one cannot be read, or has no such text.
    """
    ngrams = EvaluationNgrams(config.ngram)
    for number, entry in enumerate(config.evaluation_sets):
        key = f"overlap.evaluation_sets.{number}"
        texts = list(_evaluation_texts(reading.rows(entry, key, entry.columns), entry.columns))
        if not texts:
            raise UserError(f"{key}: {entry.path}: no text in the columns {', '.join(entry.columns)}")
        ngrams.add(entry.name, texts)
    return ngrams


def _evaluation_texts(rows: Iterator[tuple[str, Any]], columns: Sequence[str]) -> Iterator[str]:
    for _, row in rows:
        for column in columns if isinstance(row, dict) else ():
            value = row.get(column)
            yield from (text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str))
