"""What became of the rows of each data set: counts, and the rows themselves that were dropped, each with its reason."""

import codecs
import contextlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from data_pipeline.importing.config import ImportDataConfig
from data_pipeline.prompts.adapters import Rejected
from data_pipeline.report.reasons import words
from fusejax.common.files import ROW_SUFFIXES, replacing
from fusejax.data.records import Kind


class Funnel:
    """One entry of the config: how many of its rows were read, dropped for each reason, cut, and kept."""

    def __init__(self, entry: ImportDataConfig, name: str):
        self.entry = entry
        self.name = name
        """Different for each entry."""
        self.dataset = dataset_name(entry)
        self.format = ""
        self.kind: Kind = "sft"
        """What the rows become; as the format, known when they are read."""
        self.read = 0
        self.cut = 0
        self.dropped: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._file: codecs.StreamWriter | None = None

    @property
    def kept(self) -> int:
        return self.read - self.dropped.total()

    @property
    def origin(self) -> dict[str, str]:
        """Where the rows came from: a file, or the split of a folder or of a Hub data set."""
        keys = {"path"} if epath.Path(self.entry.path).is_file() else {"path", "subset", "split", "revision"}
        return self.entry.model_dump(include=keys, exclude_none=True)

    @contextlib.contextmanager
    def rejections(self, output: epath.Path) -> Iterator[None]:
        """Keeps the rows dropped within the block in `rejected/import-NAME.jsonl`, once the block ends well."""
        with replacing(rejected_file(output, self.name)) as file:
            # A row's text can hold half of a surrogate pair, which UTF-8 cannot.
            self._file = codecs.getwriter("utf-8")(file, "replace")
            yield

    def drop(self, where: str, error: Rejected, row: Any = None) -> None:
        assert self._file is not None
        line = {"where": where, "reason": error.reason, "detail": error.detail, "record": row}
        self._file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        self.dropped[error.reason] += 1
        self._first.setdefault(error.reason, f"{where}{error.detail and f': {error.detail}'}")

    def why(self) -> str:
        """The commonest reason, in words and with an example."""
        reason, count = self.dropped.most_common(1)[0]
        meaning = words("row", reason)
        return f"{count:,} for {reason}{meaning and f' ({meaning})'}, for example {self._first[reason]}"

    def as_dict(self) -> dict[str, Any]:
        dropped = dict(self.dropped.most_common())
        counts = {"read": self.read, "dropped": dropped, "cut": self.cut, "kept": self.kept}
        return {"dataset": self.name, **self.origin, "kind": self.kind, "format": self.format, **counts}


def dataset_name(entry: ImportDataConfig) -> str:
    """The name that the config gives, the file's without endings, or the Hub id."""
    path = epath.Path(entry.path)
    ending = next((ending for ending in ROW_SUFFIXES if path.name.endswith(ending)), "")
    return entry.dataset or entry.adapter or (path.name.removesuffix(ending) if path.exists() else entry.path)


def names(entries: Sequence[ImportDataConfig]) -> list[str]:
    """The names of the entries' data sets, of which the second of a name is `NAME.2`."""
    found: list[str] = []
    for entry in entries:
        name = dataset_name(entry)
        taken = {_slug(other) for other in found}
        numbered = (name if number == 1 else f"{name}.{number}" for number in itertools.count(1))
        found.append(next(each for each in numbered if _slug(each) not in taken))
    return found


def rejected_file(output: epath.Path, name: str) -> epath.Path:
    """Where the dropped rows of a data set are kept."""
    return output / "rejected" / f"import-{_slug(name)}.jsonl"


def _slug(name: str) -> str:
    """The name as part of a file's; a Hub id has a slash."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-")
