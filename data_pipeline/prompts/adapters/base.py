"""What an adapter is: from one row of a public data set to one record with our column names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


class Rejected(Exception):
    """A record that is not used as a prompt: a short constant reason, and the particulars."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Adapter:
    """How the rows of one data set are read."""

    columns: tuple[str, ...]
    """The columns that `read` looks at. No other is loaded."""
    read: Callable[[Row], dict[str, Any]]
    """A row as a record with `prompt` or `messages`, and `id`, `answer`, `tests` where it has them. Checked later.

    Raises `Rejected` where the recipe leaves the row out.
    """


def text(row: Row, column: str) -> str:
    """The column's text.

    Raises:
      Rejected: there is none, or it is blank.
    """
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise Rejected("no_prompt", f"column {column!r}")
    return value.strip()
