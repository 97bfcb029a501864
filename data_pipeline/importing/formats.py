"""Formats of SFT and preference data: found by the columns, and a row of each as turns.

    messages                        {messages or conversations: turns}
    prompt and completion           {prompt: text or turns, completion: text or turns}
    instruction and output          {instruction: text, input: text, output: text}, Alpaca's; input is optional
    pair                            {prompt: text or turns, chosen: text or turns, rejected: text or turns}
    triple                          {prompt: text or turns, source_chosen, target_chosen, rejected: each text or turns}
    triple, two answers in chosen   {prompt: text or turns, chosen: [a turn, a turn], rejected: text or turns}

The last is the form of WRPO's public rows: the source's answer, then the target's. The turns of a completion, of
`chosen` and of `rejected` may begin with those of the prompt. A pair may leave the prompt to be found: it is the common
beginning of `chosen` and `rejected`, up to a turn of the user.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from data_pipeline.importing import turns
from data_pipeline.importing.config import ImportColumns
from data_pipeline.prompts.adapters import Rejected
from fusejax.data.records import Kind, Message

Side = str | list[Message]
"""An answer: its text, or its turns, perhaps with those of the prompt before them."""
Prompt = str | list[Message]

_FORMATS: tuple[tuple[str, Kind, Mapping[str, str]], ...] = (
    ("messages", "sft", {"messages": "messages"}),
    ("messages", "sft", {"messages": "conversations"}),
    ("prompt and completion", "sft", {"prompt": "prompt", "completion": "completion"}),
    ("instruction and output", "sft", {"prompt": "instruction", "completion": "output"}),
    ("pair", "dpo", {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}),
    ("pair", "dpo", {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}),
    ("pair with the prompt inside", "dpo", {"chosen": "chosen", "rejected": "rejected"}),
    ("triple", "wrpo", {name: name for name in ("prompt", "source_chosen", "target_chosen", "rejected")}),
    ("triple, two answers in chosen", "wrpo", {name: name for name in ("prompt", "chosen", "rejected")}),
)
"""Name, what rows become, and our columns -> what these are called by default."""
_NAMES = {
    "id": ("id",),
    "system": ("system", "system_prompt"),
    "dataset": ("dataset",),
    "domain": ("domain",),
    "source_model": ("source_model",),
}
"""Columns that any format may have -> what these are called by default."""
TWO_IN_CHOSEN = _FORMATS[-1][0]
_SCORES = ("score", "rating", "reward")
_LIKELY = {
    "prompt": ("question", "query", "problem", "instruction", "input", "user"),
    "completion": ("answer", "response", "solution", "reply", "output", "target", "assistant"),
}
"""Our columns -> what they may be called; only for the hint of an error, since a guess can be wrong."""


@dataclass(frozen=True)
class Format:
    """What the rows of a data set are, and where they hold it."""

    name: str
    kind: Kind
    columns: Mapping[str, str]
    """Our name -> the column's."""


@dataclass(frozen=True)
class Content:
    """What a row holds, ready to be a record's."""

    prompt: list[Message]
    """Ends with a turn of the user, but for SFT it is empty: all turns are in `chosen`."""
    chosen: list[Message]
    rejected: list[Message]
    """Empty for SFT."""
    chosen_score: float | None = None
    rejected_score: float | None = None
    cut: bool = False
    """Whether turns that nobody answered were left out at the end."""
    source_chosen: list[Message] = field(default_factory=list)
    """Of a triple, in which `chosen` is the target's."""
    source_score: float | None = None


class UnknownFormatError(Exception):
    """The columns fit no format, or several; the text says so in one line, with the remedy."""


def find_format(present: Sequence[str], named: ImportColumns, kind: Kind | None = None) -> Format:
    """The format of rows with the columns `present`.

    Args:
      present: column names, in order.
      named: our name -> the column's, where the user says so; these come first.
      kind: what the rows shall become, where the columns would serve for both.

    Raises:
      UnknownFormatError: none fits, or more than one.

    >>> find_format(["conversations"], ImportColumns()).columns
    {'messages': 'conversations'}
    """
    given = named.model_dump(exclude_none=True)
    found = _fitting(present, given, kind)
    if not found:
        wanted = "no format" if kind is None else f"no format of {kind}"
        raise UnknownFormatError(f"{wanted} has the columns {', '.join(present) or 'of no row'}: {_hint(present)}")
    if len(found) > 1:
        several = "; or ".join(f"{format.name} ({', '.join(format.columns.values())})" for format in found)
        kinds = dict.fromkeys(format.kind for format in found)
        remedy = f"set kind={' or kind='.join(kinds)}" if len(kinds) > 1 else "name those to read"
        raise UnknownFormatError(f"the columns fit several formats, {several}: {remedy}")
    _refuse_doubtful(found[0], present, given)
    named_here = {
        name: given.get(name) or next((each for each in usual if each in present), None)
        for name, usual in _NAMES.items()
    }
    rest = {name: column for name, column in named_here.items() if column}
    return Format(found[0].name, found[0].kind, {**found[0].columns, **rest})


def _refuse_doubtful(format: Format, present: Sequence[str], given: Mapping[str, str]) -> None:
    """Raises `UnknownFormatError` where a column that is not used may turn the meaning of those that are."""
    if given.keys() & format.columns.keys():
        return
    asked = next((name for name in _LIKELY["prompt"] if name in present), None)
    if format.kind == "dpo" and "prompt" not in format.columns and asked:
        remedy = "columns.chosen=chosen columns.rejected=rejected if these begin with it"
        raise UnknownFormatError(f"is {asked} the prompt? then give columns.prompt={asked}, or {remedy}")
    if "completion" in format.columns and "label" in present:
        columns = " ".join(f"columns.{ours}={theirs}" for ours, theirs in format.columns.items())
        raise UnknownFormatError(f"does label say which answers are bad? if all are to be imitated, give {columns}")


def _fitting(present: Sequence[str], given: Mapping[str, str], wanted: Kind | None) -> list[Format]:
    """The formats that the columns fit, each with its own columns alone; all use every column that is named. Of formats
    with the same columns it is the first."""
    candidates: list[Format] = []
    for name, kind, needed in _FORMATS:
        if wanted not in (None, kind) or not all(ours in given or theirs in present for ours, theirs in needed.items()):
            continue
        columns = {ours: given.get(ours, theirs) for ours, theirs in needed.items()}
        if "prompt" in needed and (column := given.get("input") or _input(needed, present, given)):
            columns["input"] = column
        sides = () if kind == "sft" or name == TWO_IN_CHOSEN else [ours for ours in needed if ours != "prompt"]
        for side in (ours.removesuffix("_chosen") for ours in sides):
            if column := given.get(f"{side}_score") or _score(side, present):
                columns[f"{side}_score"] = column
        if kind != "wrpo" and (column := given.get("weight") or ("weight" if "weight" in present else None)):
            columns["weight"] = column
        if given.keys() <= columns.keys() | set(_NAMES) and columns not in [other.columns for other in candidates]:
            candidates.append(Format(name, kind, columns))
    # A pair whose prompt has a column is no pair without one.
    return [
        format
        for format in candidates
        if not any(format.columns.items() < other.columns.items() for other in candidates)
    ]


def _input(needed: Mapping[str, str], present: Sequence[str], given: Mapping[str, str]) -> str | None:
    """Alpaca's `input`: a common name with many meanings, so it is taken only beside an `instruction`."""
    return "input" if needed["prompt"] == "instruction" and "prompt" not in given and "input" in present else None


def _score(side: str, present: Sequence[str]) -> str | None:
    names = (name for word in _SCORES for name in (f"{word}_{side}", f"{side}_{word}", f"{side}-{word}"))
    return next((name for name in names if name in present), None)


def _hint(present: Sequence[str]) -> str:
    likely = {ours: next((name for name in names if name in present), None) for ours, names in _LIKELY.items()}
    if "text" in present and not any(likely.values()):
        return "a plain text has no turns; a record needs a user's and an assistant's"
    named = {ours: name or "COLUMN" for ours, name in likely.items()}
    on_the_line = " ".join(f"columns.{ours}={name}" for ours, name in named.items())
    return f"name them, for example {on_the_line}; the same keys are a section `columns` in a configuration"


def read(row: Mapping[str, Any], format: Format) -> Content:
    """What a row holds.

    Raises:
      Rejected: it cannot be trained on, and why.
    """
    values = {ours: row.get(theirs) for ours, theirs in format.columns.items()}
    system = _system(values.get("system"))
    if format.kind == "dpo":
        return _pair(values, system, has_prompt="prompt" in format.columns)
    if format.kind == "wrpo":
        return _triple(values, system)
    if "messages" in format.columns:
        whole = _after(system, turns.read_turns(values["messages"], format.columns["messages"]))
    else:
        prompt = _prompt(values)
        if prompt is None:
            raise Rejected("no_prompt")
        whole, _ = _joined(system, prompt, _side(values["completion"], "completion"))
    kept = turns.answered(whole)
    turns.check(kept)
    return Content([], kept, [], cut=len(kept) < len(whole))


def _pair(values: Mapping[str, Any], system: list[Message], *, has_prompt: bool) -> Content:
    sides: list[Side] = [_side(values[name], name) for name in ("chosen", "rejected")]
    prompt = _prompt(values) if has_prompt else None
    if prompt is None:
        if has_prompt and all(isinstance(side, str) for side in sides):
            raise Rejected("no_prompt")
        prompt, sides = _implicit(sides)
    joined = [_joined(system, prompt, side) for side in sides]
    chosen, rejected = (turns.answered(whole) for whole, _ in joined)
    for conversation in (chosen, rejected):
        turns.check(conversation)
    known = [length for _, length in joined if length is not None]
    length = known[0] if known else common_prompt(chosen, rejected)
    if not length:
        raise Rejected("no_prompt", "chosen and rejected begin differently")
    if chosen[:length] != rejected[:length]:
        raise Rejected("prompts_differ", "between chosen and rejected")
    if chosen == rejected:
        raise Rejected("equal_answers")
    return Content(
        chosen[:length],
        chosen[length:],
        rejected[length:],
        _number(values.get("chosen_score"), "chosen"),
        _number(values.get("rejected_score"), "rejected"),
        cut=len(chosen) + len(rejected) < sum(len(whole) for whole, _ in joined),
    )


def _triple(values: Mapping[str, Any], system: list[Message]) -> Content:
    """Two pairs with one rejected answer."""
    if "chosen" in values:
        both = turns.read_turns(values["chosen"], "chosen")
        if [turn["role"] for turn in both] != ["assistant"] * 2:
            raise Rejected("not_two_answers", f"chosen: {' '.join(turn['role'] for turn in both)}")
        values = {**values, "source_chosen": both[:1], "target_chosen": both[1:]}
    source, target = (
        _pair(
            {**values, "chosen": values[f"{side}_chosen"], "chosen_score": values.get(f"{side}_score")},
            system,
            has_prompt=True,
        )
        for side in ("source", "target")
    )
    if source.prompt != target.prompt or source.rejected != target.rejected:
        raise Rejected("prompts_differ", "between the two chosen answers")
    cut = source.cut or target.cut
    return replace(target, source_chosen=source.chosen, source_score=source.chosen_score, cut=cut)


def two_in_chosen(rows: Sequence[Any]) -> bool:
    """Whether most rows hold two answers in `chosen`, which no row of another format does; a few may be damaged."""
    found = [row["chosen"] for row in rows if isinstance(row, Mapping) and "chosen" in row]
    return 2 * sum(turns.are_answers(chosen, 2) for chosen in found) > len(found)


def common_prompt(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """How many turns are the prompt of two conversations: their common beginning, up to a turn of the user.

    Turns of the assistant that end the common beginning belong to the answers. 0 if there is no such beginning.
    """
    length = 0
    for place, (one, other) in enumerate(zip(chosen, rejected, strict=False), 1):
        if one != other:
            break
        length = place if one["role"] == "user" else length
    return length


def common_text(chosen: str, rejected: str) -> tuple[str, str, str] | None:
    """Prompt, chosen and rejected answer of two texts: their common beginning, in whole words, and the rest of each.

    >>> common_text("The sky is blue.", "The sky is green.")
    ('The sky is', 'blue.', 'green.')
    """
    differs = next((place for place, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    same = chosen[: min(len(chosen), len(rejected)) if differs is None else differs]
    cut = len(same) - len(same.split()[-1]) if same.split() and not same[-1].isspace() else len(same)
    prompt = same[:cut].strip()
    return (prompt, chosen[cut:], rejected[cut:]) if prompt else None


def _implicit(sides: Sequence[Side]) -> tuple[Prompt, list[Side]]:
    """The prompt where no column has it, and the sides: of two texts split off, of conversations still within them."""
    one, other = sides
    if isinstance(one, str) and isinstance(other, str):
        spoken = [turns.dialogue(side) for side in (one, other)]
        if all(spoken):
            return [], [side or [] for side in spoken]
        if (split := common_text(one, other)) is None:
            raise Rejected("no_prompt", "chosen and rejected begin differently")
        prompt, *answers = split
        return prompt, list(answers)
    if isinstance(one, str) or isinstance(other, str):
        raise Rejected("no_prompt", "one answer is text, the other turns")
    return [], [one, other]


def _joined(system: list[Message], prompt: Prompt, side: Side) -> tuple[list[Message], int | None]:
    """The whole conversation, and how many turns of it are the prompt; None where the prompt lies somewhere within."""
    asked: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if isinstance(side, str):
        side = [{"role": "assistant", "content": side}]
    if asked and side[0]["role"] == "assistant":
        begun = _after(system, asked)
        return [*begun, *side], len(begun)
    whole = _after(system, side)
    if isinstance(prompt, str):
        questions = [turn["content"].strip() for turn in side if turn["role"] == "user"]
        # Data sets give a prompt of several turns as its first, its last, or all of them in one text.
        if prompt.strip() not in questions and not all(question in prompt for question in questions):
            raise Rejected("prompts_differ", "the answer's turns begin with another prompt")
        return whole, None
    if side[: len(asked)] != asked:
        raise Rejected("prompts_differ", "the answer's turns begin with another prompt")
    return whole, len(asked) + len(whole) - len(side) if asked else None


def _side(value: Any, name: str) -> Side:
    if value is None or isinstance(value, str | int | float):
        return turns.plain_text(value, name)
    return turns.read_turns(value, name)


def _prompt(values: Mapping[str, Any]) -> Prompt | None:
    """The prompt, followed by its input after a blank line; None if there is none or a blank one."""
    prompt = _side(values.get("prompt"), "prompt")
    if isinstance(prompt, str) and not prompt.strip():
        return None
    more = turns.plain_text(values.get("input"), "input")
    if not more.strip():
        return prompt
    if not isinstance(prompt, str):
        raise Rejected("not_text", "there is an input, but the prompt is a list of turns")
    return f"{prompt}\n\n{more}"


def _system(value: Any) -> list[Message]:
    text = turns.plain_text(value, "system")
    return [{"role": "system", "content": text}] if text.strip() else []


def _after(system: list[Message], conversation: list[Message]) -> list[Message]:
    """The conversation with the row's system turn before it, unless it begins with that."""
    # With another system turn of its own it has two, and `turns.check` refuses it.
    return conversation if conversation[:1] == system else [*system, *conversation]


def weight(value: Any) -> float | None:
    """How much a record counts; None where the row does not say."""
    try:
        number = _number(value, "weight")
    except Rejected:
        number = 0
    # As it is stored: a float of Python's may be too small or too large for that.
    with np.errstate(over="ignore", under="ignore"):
        stored = np.float32(1 if number is None else number)
    if not (np.isfinite(stored) and stored > 0):
        raise Rejected("bad_weight", repr(value))
    return number


def _number(value: Any, side: str) -> float | None:
    """A score; None where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        number = math.inf if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.inf
    if not math.isfinite(number):
        raise Rejected("bad_score", f"{side}: {value!r}")
    return number
