"""Secrets kept out of lines and files: passwords in URLs, keys, and what a server echoes of them."""

import re
import unicodedata
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit, urlunsplit

MASK = "***"
SHORTEST = 3
"""Characters of the shortest known secret that is looked for: a single letter is in every text."""
_USERINFO = re.compile(r"(?<=://)([^\s/?#]*|[^\s/@]*:[^\s@]*)@")
_QUERY = re.compile(r"(://[^\s'\"?]*\?)([^\s'\"]+)")
_PATH_QUERY = re.compile(
    r"(?i)([?&][\w.-]*(?:key|token|secret|password|passwd|pwd|auth|sig|credential)[\w.-]*=)[^\s&#'\"]+"
)
_HEADER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}")
_ASSIGNED = re.compile(r"(?i)\b(api[ _-]?key|authorization|password|secret)([\"'\s]*[:=]\s*[\"']?)(?!\*)[^\s\"',;}]+")
_KEY = re.compile(r"\b(?:(?:sk|pk|hf|gsk|xai)[-_]|AIza)[\w-]{8,}")
_SECRET_NAME = re.compile(
    r"(?i)(api[_-]?key|secret|passw(or)?d|authorization|credential|(access|auth|bearer|hf)[_-]?token|^token$|^key$)"
)
_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)?")


def mask(text: str, secrets: Collection[str] = ()) -> str:
    """The text without passwords in URLs, without the values of their queries, and without these secrets.

    >>> mask("http://ann:pass@host/v1?code=1a&page=2 refused 1b, /v1?api_key=1c too", ["refused"])
    'http://***@host/v1?code=***&page=*** *** 1b, /v1?api_key=*** too'
    """
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST:
            text = text.replace(secret, MASK)
    text = _QUERY.sub(
        lambda found: found[1] + re.sub(r"=[^&#]+", f"={MASK}", found[2]), _USERINFO.sub(f"{MASK}@", text)
    )
    return _PATH_QUERY.sub(rf"\1{MASK}", text)


def shown(url: str) -> str:
    """A URL as it may be stored: without user and password, and without any value of its query.

    >>> shown("https://ann:pass@host:8000/v1?code=1a&page=2"), shown("http://host/v1")
    ('https://***@host:8000/v1?code=***&page=***', 'http://host/v1')
    """
    parts = urlsplit(url)
    _, at, host = parts.netloc.rpartition("@")
    query = re.sub(r"=[^&]*", f"={MASK}", parts.query) if "=" in parts.query else MASK if parts.query else ""
    return urlunsplit(parts._replace(netloc=f"{MASK}{at}{host}" if at else host, query=query))


def values(section: Any) -> Any:
    """Plain values with those masked whose name says that they are secret, at any depth.

    >>> values({"hf_token": "hf_1", "max_tokens": 5, "options": [{"api_key": "1"}]})
    {'hf_token': '***', 'max_tokens': 5, 'options': [{'api_key': '***'}]}
    """
    if isinstance(section, dict):
        return {
            name: MASK if isinstance(value, str) and _SECRET_NAME.search(str(name)) else values(value)
            for name, value in section.items()
        }
    return [values(value) for value in section] if isinstance(section, list | tuple) else section


def echoed(text: str, secrets: Collection[str] = (), limit: int = 300) -> str:
    """What somebody else's program said, fit for a line or a file: short, one line, no control characters, no secrets.

    >>> echoed("bad key 'open sesame'\\x1b[31m\\n\\n retry\\u202e", ["open sesame"])
    "bad key '***' retry"
    """
    # Cut before it is searched, since it may be megabytes; masked before it is cut for good, since half a key is a key.
    text = _ESCAPE.sub("", text[: 16 * limit + 4096])
    kept = (" " if letter.isspace() else letter for letter in text if not _unseen(letter))
    flat = mask(" ".join("".join(kept).split()), secrets)
    flat = _ASSIGNED.sub(rf"\1\2{MASK}", _HEADER.sub(rf"\1 {MASK}", flat))
    flat = _KEY.sub(MASK, flat)
    return flat if len(flat) <= limit else f"{flat[:limit]} ..."


def _unseen(letter: str) -> bool:
    """Control and format characters, halves of surrogate pairs, unassigned ones; no white space."""
    return unicodedata.category(letter)[0] == "C" and not letter.isspace()
