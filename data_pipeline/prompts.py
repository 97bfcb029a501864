"""Stage `prompts`: files and Hub data sets to one checked table, `prompts.parquet`.

Every record either becomes a row or a line of `rejected/prompts.jsonl` with its reason.
"""

import codecs
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import polars as pl
import pydantic
from etils import epath

from data_pipeline import store
from data_pipeline.config import PipelineConfig, PromptsConfig
from fusejax.cli import UserError
from fusejax.files import local_copy, replacing

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
LOCAL_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


class Rejected(Exception):
    """A record that cannot serve as a prompt: a short constant reason, and what is wrong in particular."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def run(config: PipelineConfig) -> None:
    """Writes `prompts.parquet` and `rejected/prompts.jsonl`.

    Raises:
      UserError: a file is missing or unreadable, has no such column, or yields no prompt.
    """
    output = epath.Path(config.output_dir)
    table, rejected = output / "prompts.parquet", output / "rejected" / "prompts.jsonl"
    inputs = store.fingerprint(
        config.model_dump(mode="json", include={"prompts", "seed", "scorers"}),
        *(epath.Path(entry.path) for entry in config.prompts if epath.Path(entry.path).is_file()),
    )

    def work() -> str:
        reasons: Counter[str] = Counter()
        with replacing(rejected) as file:
            # A record's text can hold half of a surrogate pair, which UTF-8 cannot.
            lines = codecs.getwriter("utf-8")(file, "replace")
            store.write_parquet(_read_all(config, lines, reasons), table)
        count = len(store.read_parquet(table, ["id"], made_by="prompts"))
        return f"{count:,} prompts, {reasons.total():,} rejected" + (f" {dict(reasons)}" if reasons else "")

    store.once(output, "prompts", inputs, [table, rejected], work)


def _read_all(config: PipelineConfig, rejected: codecs.StreamWriter, reasons: Counter[str]) -> pl.DataFrame:
    """The table; rejected records go to the file as they come, and are counted."""
    kept: list[dict[str, Any]] = []
    ids: set[str] = set()
    texts: set[str] = set()
    entries_of: Counter[str] = Counter()

    def reject(where: str, reason: str, detail: str, record: Any = None) -> None:
        line = {"where": where, "reason": reason, "detail": detail, "record": record}
        rejected.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        reasons[reason] += 1

    for entry in config.prompts:
        before = Counter(reasons)
        # Another file of the same data set has ids of its own.
        entries_of[entry.dataset] += 1
        prefix = entry.dataset if entries_of[entry.dataset] == 1 else f"{entry.dataset}.{entries_of[entry.dataset]}"
        of_entry: list[tuple[str, dict[str, Any]]] = []
        unseen = set(entry.columns.model_dump(exclude_none=True).values())
        count = 0
        for count, (where, record) in enumerate(_records(entry), 1):
            if isinstance(record, dict):
                unseen -= record.keys()
            try:
                row = _prompt(record, entry, default_id=f"{prefix}-{count - 1}", config=config)
                content = store.fingerprint(row["domain"], row["messages"])
                if row["id"] in ids:
                    raise Rejected("duplicate_id", row["id"])
                if content in texts:
                    raise Rejected("duplicate_prompt", row["id"])
            except Rejected as error:
                reject(where, error.reason, error.detail, record)
                continue
            ids.add(row["id"])
            texts.add(content)
            of_entry.append((where, row))
        if not count:
            raise UserError(f"prompts: {entry.path}: empty data set")
        if unseen:
            raise UserError(f"prompts: {entry.path}: no record has the column {min(unseen)!r}")
        if not of_entry:
            reason, _ = (reasons - before).most_common(1)[0]
            raise UserError(f"prompts: {entry.path}: all {count} records are rejected, mostly for {reason}")
        if entry.limit is not None and entry.limit < len(of_entry):
            ranked = sorted(row["id"] for _, row in of_entry)
            ranked.sort(key=lambda prompt: store.rank(config.seed, "limit", prompt))
            chosen = set(ranked[: entry.limit])
            for where, row in of_entry:
                if row["id"] not in chosen:
                    reject(where, "over_limit", row["id"])
            of_entry = [(where, row) for where, row in of_entry if row["id"] in chosen]
        kept.extend(row for _, row in of_entry)
    return pl.DataFrame(kept, schema=SCHEMA)


def _records(entry: PromptsConfig) -> Iterator[tuple[str, Any]]:
    """Pairs of (where, record); a line that is no JSON comes as its text."""
    path = epath.Path(entry.path)
    if path.is_dir():
        raise UserError(f"prompts: {path} is a directory; give a file ({', '.join(LOCAL_SUFFIXES)}) or a Hub id")
    if path.name.endswith((".jsonl", ".jsonl.gz")) and path.exists():
        try:
            with local_copy(path) as local, gzip.open(local) if path.suffix == ".gz" else local.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield f"{path}:{number}", _json(line)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"prompts: {path}: cannot be read: {store.one_line(error)}") from None
    elif path.suffix == ".parquet" and path.exists():
        rows = store.read_parquet(path, [], made_by="prompts").iter_rows(named=True)
        yield from ((f"{path}:{number}", row) for number, row in enumerate(rows))
    elif path.exists():
        raise UserError(f"prompts: {path}: unknown kind of file; known are {', '.join(LOCAL_SUFFIXES)}")
    elif path.is_absolute() or path.name.endswith(LOCAL_SUFFIXES) or len(path.parts) > 2:
        raise UserError(f"prompts: {path}: no such file")
    else:
        yield from _hub_records(entry)


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line.decode(errors="replace").rstrip("\n")


def _hub_records(entry: PromptsConfig) -> Iterator[tuple[str, Any]]:
    import datasets  # Slow to import, and only here.

    try:
        rows = datasets.load_dataset(entry.path, split=entry.split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        problem = store.one_line(error)
        raise UserError(f"prompts: {entry.path}: no such file, nor a data set that the Hub gives: {problem}") from None
    yield from ((f"{entry.path}:{entry.split}:{number}", row) for number, row in enumerate(rows))


class _Message(pydantic.BaseModel):
    role: str
    content: str


_MESSAGES = pydantic.TypeAdapter(list[_Message])


def _prompt(record: Any, entry: PromptsConfig, *, default_id: str, config: PipelineConfig) -> dict[str, Any]:
    """A row of `SCHEMA`, or `Rejected`."""
    if not isinstance(record, dict):
        raise Rejected("bad_json" if isinstance(record, str) else "not_an_object")
    columns = {ours: theirs or ours for ours, theirs in entry.columns.model_dump().items()}
    # `input` is a common name with many meanings, so it is read only where the config names it.
    values = {ours: record.get(theirs) for ours, theirs in (columns | {"input": entry.columns.input}).items()}
    messages = values["messages"]
    if messages is None:
        text = values["prompt"]
        if not isinstance(text, str) or not text.strip():
            raise Rejected("no_prompt")
        if isinstance(values["input"], str) and values["input"].strip():
            text = f"{text}\n\n{values['input']}"
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
    answer, tests = values["answer"], values["tests"]
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if answer is not None and not isinstance(answer, str):
        raise Rejected("bad_answer", f"{type(answer).__name__}, not text")
    tests = [tests] if isinstance(tests, str) else tests
    if tests is not None and not (isinstance(tests, list) and all(isinstance(test, str) for test in tests)):
        raise Rejected("bad_tests", "not a list of texts")
    correctness = getattr(config.scorers, entry.domain).correctness
    if correctness == "math_verify" and not (answer and answer.strip()):
        raise Rejected("no_answer")
    if correctness == "code" and not tests:
        raise Rejected("no_tests")
    row = {
        "id": default_id if values["id"] is None else str(values["id"]),
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
