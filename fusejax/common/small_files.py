"""Small files that others wrote, such as `config.json`: read up to a size, and their values checked by a table.

What is wrong with one is told in one line. A pipe, a device or a file without end is never waited for, nor held in
memory.

>>> check({"layers": 3, "tied": "false"}, {"layers": whole(1, 100), "tied": FLAG})
Traceback (most recent call last):
fusejax.common.cli.UserError: tied 'false' is not true or false
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from etils import epath
from etils.epath.typing import PathLike

from fusejax.common.cli import UserError, one_line
from fusejax.common.files import is_remote

LIMIT = 2**24
"""Bytes of a file, if nothing else is said."""
_DEEPEST = 64
"""How far JSON may be nested: more than any real file, and far less than where Python gives up."""


def read_bytes(path: PathLike, limit: int = LIMIT) -> bytes:
    """The file's content.

    Raises:
      FileNotFoundError: no such file.
      UserError: it is no regular file, has more than `limit` bytes, or cannot be read.
    """
    file = epath.Path(path)
    try:
        if not is_remote(file) and Path(file).exists() and not Path(file).is_file():
            raise UserError(f"{path}: not a regular file")
        with file.open("rb") as opened:
            content: Any = opened.read(limit + 1)  # some that have no end say that they have no bytes
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from None
    if len(content) > limit:
        raise UserError(f"{path}: has more than {limit:,} bytes, which no such file needs")
    return content


def read_text(path: PathLike, limit: int = LIMIT) -> str:
    """The file's text. Raises as `read_bytes` does, and `UserError` where it is not UTF-8."""
    try:
        return read_bytes(path, limit).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({one_line(error)})") from None


def read_object(path: PathLike, limit: int = LIMIT) -> dict[str, Any]:
    """The JSON object in the file.

    Raises:
      FileNotFoundError: no such file.
      UserError: as `read_text`; or it holds no JSON object, one that is nested too far, a key twice, or a number that
        is none (NaN, Infinity, 1e999).
    """
    text = read_text(path, limit)
    try:
        values = json.loads(text, parse_constant=_not_finite, parse_float=_finite, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        problem = "nested too far" if isinstance(error, RecursionError) else one_line(error)
        raise UserError(f"{path}: cannot be read as JSON ({problem})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object, found {shown(values)}")
    if _depth(values) > _DEEPEST:
        raise UserError(f"{path}: cannot be read as JSON (nested too far)")
    if "\\ud" in text.lower() and not _is_unicode(values):
        raise UserError(f"{path}: cannot be read as JSON (half a surrogate pair is no character)")
    return values


def _is_unicode(values: dict[str, Any]) -> bool:
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _not_finite(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _not_finite(text)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """All but the last value of a key would be lost."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return values


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = [list(each.values()) if isinstance(each, dict) else each for each in level]
        level = [value for values in inner if isinstance(values, list) for value in values]
        level = [value for value in level if isinstance(value, dict | list)]
    return depth


# What values may be


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a value may be."""

    name: str
    """After "is not"."""
    accepts: Callable[[Any], bool]


def whole(low: int, high: int) -> Kind:
    """An integer of a range, bounds included; neither `true` nor 1.0 is one."""
    name = f"an integer from {low} to {high}"
    return Kind(name, lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high)


def number(low: float, high: float, *, above: bool = False) -> Kind:
    """A number of a range, bounds included, or without the lower one (`above`)."""

    def accepts(value: Any) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and low <= value <= high and not (above and value == low)

    name = f"a number above {low:g}, at most {high:g}" if above else f"a number from {low:g} to {high:g}"
    return Kind(name, accepts)


FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a text", lambda value: isinstance(value, str))


def list_of(kind: Kind) -> Kind:
    """A list whose every item is of a kind."""
    return Kind(f"a list, each of it {kind.name}", lambda v: isinstance(v, list) and all(map(kind.accepts, v)))


def object_of(kind: Kind) -> Kind:
    """An object whose every value is of a kind."""
    name = f"an object, each value {kind.name}"
    return Kind(name, lambda v: isinstance(v, dict) and all(map(kind.accepts, v.values())))


def either(*kinds: Kind) -> Kind:
    """Any of some kinds."""
    return Kind(" or ".join(kind.name for kind in kinds), lambda value: any(kind.accepts(value) for kind in kinds))


NULL = Kind("null", lambda value: value is None)
ANYTHING = Kind("anything", lambda value: True)


def check(values: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Checks the values of the keys that the table names, where they are given. Other keys may have any value.

    Raises:
      UserError: a value is not of its kind; the line begins with the key.
    """
    for key, kind in kinds.items():
        if key in values and not kind.accepts(values[key]):
            raise UserError(f"{key} {shown(values[key])} is not {kind.name}")


def shown(value: Any, limit: int = 80) -> str:
    """A value as Python has it, in one line that is cut after so many characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too far, or an integer of too many digits
        text = type(value).__name__
    return text if len(text) <= limit else f"{text[:limit]} ..."
