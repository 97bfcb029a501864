"""What a server answered, checked before it is believed: pure functions from its JSON to answers.

Everything that a server sends is taken to be wrong until it has the right type and a possible value.
"""

import json
import re
from typing import Any

from data_pipeline.sampling.sampler import Answer
from fusejax.common import redact

MOST_TOKENS = 2**24
"""More tokens than any model writes or reads at a time: a larger count is no count."""
REFUSING = ("content_filter", "tool_calls", "function_call", "refusal")
"""Ends of an answer with which a server or a model says that there will be none: no use in asking again."""


class Malformed(ValueError):
    """Not what a server of this kind answers; the text says in what way."""


def parse(content: bytes) -> Any:
    """JSON.

    Raises:
      Malformed: it is none.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise Malformed(f"no JSON: {redact.echoed(content[:2000].decode(errors='replace'), limit=80)!r}") from None


def completion(found: Any, most: int) -> Answer:
    """The answer of `/completions`.

    Args:
      found: the parsed response.
      most: tokens that were asked for.

    Raises:
      Malformed: it holds no answer, or an impossible one.
    """
    choice = _choice(found)
    read, written = _usage(found, most)
    return _answer(choice, choice.get("text"), None, read, written)


def chat(found: Any) -> Answer:
    """The answer of `/chat/completions`; its thought, where it comes in a field of its own.

    Raises:
      Malformed: as for `completion`.
    """
    choice = _choice(found)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise Malformed("no message")
    thought = message.get("reasoning_content") or message.get("reasoning")
    if not isinstance(thought, str | None):
        raise Malformed(f"a reasoning of type {type(thought).__name__}")
    text = message.get("content")
    if text is None and thought is not None:
        text = ""  # The limit was reached before the answer began.
    # Counts may exceed the limit, where thoughts are counted apart.
    read, written = _usage(found, MOST_TOKENS)
    return _answer(choice, text, thought, read, written)


def top_logprobs(found: Any) -> tuple[tuple[str, float], ...] | None:
    """(token, log-probability) of the likeliest first tokens of a chat's answer, likeliest first; None if there are
    none.

    Raises:
      Malformed: they are no such list.
    """
    logprobs = _choice(found).get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not content:
        return None
    try:
        top = [(each["token"], float(each["logprob"])) for each in content[0]["top_logprobs"]]
    except (KeyError, IndexError, TypeError, ValueError):
        raise Malformed("logprobs that are none") from None
    # Of a token that cannot come, -inf; NaN compares with nothing.
    if not all(isinstance(token, str) and logprob <= 1e-3 for token, logprob in top):
        raise Malformed("logprobs that are none")
    return tuple(sorted(top, key=lambda pair: -pair[1])) or None


def model(found: Any) -> str | None:
    """The name of the model that answered; None if the response does not say.

    Raises:
      Malformed: it is no name.
    """
    name = found.get("model")
    if not isinstance(name, str | None):
        raise Malformed(f"a model of type {type(name).__name__}")
    return name


def same_model(asked: str, answered: str) -> bool:
    """Whether these are one model's names: hosts add owners, dates and formats, or leave them out.

    >>> same_model("gpt-4o", "gpt-4o-2024-08-06"), same_model("qwen3", "models/Qwen3.gguf")
    (True, True)
    >>> same_model("gpt-4o", "gpt-4o-mini"), same_model("gpt-4o-2024-05-13", "gpt-4o-2024-08-06")
    (False, False)
    """
    names = [name.lower().rpartition("/")[2] for name in (asked, answered)]
    bases = [_VARIANT.sub("", name) for name in names]
    dates = [set(_DATE.findall(name[len(base) :])) for name, base in zip(names, bases, strict=True)]
    return bases[0] == bases[1] != "" and (not all(dates) or dates[0] == dates[1])


_DATE = re.compile(r"\d{4}-\d\d-\d\d|\d{3,8}")
_VARIANT = re.compile(rf"([-@:._]({_DATE.pattern}|latest|free|gguf|[a-z]*q\d\w*))*$")


def models(found: Any) -> dict[str, tuple[int | None, str | None]]:
    """Name of each model that a server lists -> the length of its context, and the model that it is another name of.

    Raises:
      Malformed: it lists none.
    """
    listed = found.get("data") if isinstance(found, dict) else None
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise Malformed("/models does not list models; is this the URL up to /v1?")
    table = {}
    for each in listed:
        name, length, root = each.get("id"), each.get("max_model_len"), each.get("root")
        if not isinstance(name, str):
            raise Malformed("/models lists a model without a name")
        table[name] = (None if length is None else _count(length, 2**31), root if isinstance(root, str) else None)
    return table


def problem(content: bytes) -> str:
    """What an error's body says, without what it repeats of the request: the message alone, if it can be found."""
    text = content.decode(errors="replace")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return _message(found) or ("" if isinstance(found, dict | list) else text)


def _message(found: Any) -> str:
    """Of OpenAI's form, `{error: {message, param}}`, of FastAPI's, `{detail: [{loc, msg}]}`, and of those like them."""
    match found:
        case {"error": dict() | str() as error}:
            return _message(error)
        case {"message": str() as message}:
            param = found.get("param")
            return f"{message} (param: {param})" if isinstance(param, str) and param not in message else message
        case {"detail": str() | list() as detail}:
            return _message(detail)
        case {"msg": str() as message}:
            loc = found.get("loc")
            place = ".".join(str(part) for part in loc if isinstance(part, str | int)) if isinstance(loc, list) else ""
            return f"{place}: {message}" if place else message
        case [*several]:
            return "; ".join(filter(None, map(_message, several[:5])))
        case str():
            return found
    return ""


def _choice(found: Any) -> dict[str, Any]:
    choices = found.get("choices") if isinstance(found, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise Malformed("not one choice")
    return choices[0]


def _usage(found: dict[str, Any], most: int) -> tuple[int, int]:
    """How many tokens were read, and written."""
    usage = found.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return _count(counts.get("prompt_tokens"), MOST_TOKENS), _count(counts.get("completion_tokens"), most)


def _count(value: Any, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise Malformed("an impossible number of tokens, or none")
    return value


def _answer(choice: dict[str, Any], text: Any, thought: str | None, read: int, written: int) -> Answer:
    reason = choice.get("finish_reason")
    if reason in REFUSING:
        return Answer("", "error", written, f"refused: finished by {reason!r}")
    if reason not in ("stop", "length"):  # By an engine that is shutting down, for example.
        raise Malformed(f"finished by {redact.echoed(str(reason), limit=40)!r}")
    if not isinstance(text, str):
        raise Malformed(f"a text of type {type(text).__name__}")
    return Answer(text, reason, written, reasoning=thought, prompt_tokens=read)
