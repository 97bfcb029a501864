"""Turns of a conversation, in whichever form a data set holds them, as the trainer takes them.

A record serves every target, so a conversation must be one that every chat template takes: an optional system turn,
then the user and the assistant in turns, none of them blank.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.prompts.adapters import Rejected
from fusejax.data.records import Message

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bing", "bot", "model", "ai"), "assistant"),
}
"""What data sets call a role -> its name here. Capitals do not matter."""
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value")
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def read_turns(value: Any, column: str) -> list[Message]:
    """The turns that a row holds in a column.

    Takes lists of `{role, content}` or of ShareGPT's `{from, value}`, one such object, the two lists of an object that
    a table made of such a list, and any of these as JSON text. Content may be a list of parts, if all are text. A blank
    system turn at the beginning is left out.

    >>> read_turns([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}], "conversations")
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello!'}]

    Raises:
      Rejected: no turns, an unknown role, content that is not text, a tool called, a turn not to be trained on.
    """
    if isinstance(value, str) and (value := _json(value)) is None:
        raise Rejected("no_turns", f"{column} is text, not a list of turns")
    if isinstance(value, Mapping):
        value = _of_object(value)
    if not isinstance(value, Sequence) or not value:
        raise Rejected("no_turns", f"{column} holds {type(value).__name__ if value else 'nothing'}")
    turns = [_turn(turn, f"{column}.{number}") for number, turn in enumerate(value)]
    return turns[1:] if turns[0]["role"] == "system" and not turns[0]["content"].strip() else turns


def is_turns(value: Any) -> bool:
    """Whether a cell's text is JSON of a turn or a list of turns, as tables that know only text hold it."""
    found = _json(value) if isinstance(value, str) and value.lstrip().startswith(("[", "{")) else None
    found = [found] if isinstance(found, dict) else found
    return isinstance(found, list) and bool(found) and all(_role(turn) is not None for turn in found)


def are_answers(value: Any, count: int) -> bool:
    """Whether it is a list of so many turns, all of the assistant."""
    if not isinstance(value, list) or len(value) != count:
        return False
    return all(ROLES.get(str(_role(turn)).strip().lower()) == "assistant" for turn in value)


def dialogue(text: str) -> list[Message] | None:
    """The turns of a text in which `Human:` and `Assistant:` begin paragraphs; None if it does not begin so.

    >>> dialogue("\\n\\nHuman: Hi\\n\\nAssistant: Hello!")
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello!'}]
    """
    first, *rest = _SPEAKER.split(f"\n\n{text.lstrip()}")
    if first.strip() or not rest:
        return None
    spoken = zip(rest[::2], rest[1::2], strict=True)
    return [{"role": ROLES[name.lower()], "content": said.strip()} for name, said in spoken]


def plain_text(value: Any, where: str) -> str:
    """Content as text; a whole number counts as text, None as blank, parts of text are put together.

    Raises:
      Rejected: it is something else.
    """
    if value is None:
        return ""
    if isinstance(value, list):
        return "".join(_part(part, where) for part in value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Rejected("not_text", f"{where} is {type(value).__name__}")
    return str(value)


def answered(turns: Sequence[Message]) -> list[Message]:
    """The turns up to the assistant's last one.

    Raises:
      Rejected: the assistant says nothing.
    """
    last = max((number for number, turn in enumerate(turns) if turn["role"] == "assistant"), default=None)
    if last is None:
        raise Rejected("no_assistant_turn")
    return list(turns[: last + 1])


def check(turns: Sequence[Message]) -> None:
    """Whether the trainer takes the conversation, with any target's chat template.

    Raises:
      Rejected: a blank turn, roles out of order, or half a character.
    """
    for number, turn in enumerate(turns):
        if not turn["content"].strip():
            raise Rejected("empty_turn", f"turn {number}, {turn['role']}")
        try:
            turn["content"].encode()
        except UnicodeEncodeError:
            raise Rejected("bad_unicode", f"turn {number}, {turn['role']}") from None
    roles = [turn["role"] for turn in turns]
    said = roles[1:] if roles[:1] == ["system"] else roles
    if said != [("user", "assistant")[place % 2] for place in range(len(said))]:
        raise Rejected("turn_order", " ".join(roles))


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _of_object(value: Mapping[str, Any]) -> Any:
    """A list of turns: of one turn, or of an object with a list of roles and one of contents."""
    roles = _value(value, _ROLE_KEYS)
    contents = _value(value, _CONTENT_KEYS)
    if isinstance(roles, list) and isinstance(contents, list) and len(roles) == len(contents):
        return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    return [value]


def _turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping) or _role(turn) is None:
        raise Rejected("no_turns", f"{where} is not an object with a role and content")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise Rejected("tool_use", where)
    if turn.get("weight") == 0 or turn.get("train") is False:
        raise Rejected("not_for_training", where)
    name = str(_role(turn))
    role = ROLES.get(name.strip().lower())
    if role is None:
        raise Rejected("unknown_role", name)
    return {"role": role, "content": plain_text(_value(turn, _CONTENT_KEYS), where)}


def _role(turn: Any) -> str | None:
    found = _value(turn, _ROLE_KEYS) if isinstance(turn, Mapping) else None
    return found if isinstance(found, str) else None


def _value(turn: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((turn[key] for key in keys if turn.get(key) is not None), None)


def _part(part: Any, where: str) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part
    if not isinstance(text, str):
        raise Rejected("not_text", f"{where} holds more than text")
    return text
