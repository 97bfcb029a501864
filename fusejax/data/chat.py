"""A conversation as token ids and a loss mask, with any tokenizer's own chat template.

The ids are exactly those of `tokenizer.apply_chat_template(messages, tokenize=True)`: special tokens come from the
template alone, so there is never a second BOS, and what a message spells of them stays text
(`fusejax.common.plain_text`). Where the template has no place for a system turn, `messages` are those of
`fusejax.common.chat_template`.

One rule says where an answer begins: a model is asked with the turns before the answer and the generation prompt, so
that, token for token, must be the beginning of the text that it is trained on, and everything behind it is a target.
Qwen3's template writes an empty block of reasoning before a last answer without any, which the generation prompt does
not have: it is a target, too, so the trained model writes it itself. Where the template asks with another text than it
trains on, the conversation is refused. Some of Mistral's templates write the system turn only where the last turn is
the user's; reasoning models' open a thought in the generation prompt that the training text lacks.

An answer ends with the token that stops generation. Few templates mark what the assistant says, so the end is found by
substitution: the conversation is rendered again with a sentinel for the answer; what stands after the sentinel also
stands after the answer. Where the two renderings do not fit together, or no special token ends the turn, the
conversation is refused: it is never masked by guess.
"""

import datetime
import functools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32
from transformers import PreTrainedTokenizerBase

from fusejax.common import chat_template
from fusejax.common.chat_template import DEFAULT_DATE, TemplateError, as_template_takes, render
from fusejax.common.cli import UserError
from fusejax.common.plain_text import SpelledError, Tokens, hide, reveal, tokenize
from fusejax.data.records import Message

Reason = Literal["template_error", "empty_mask", "empty_response", "no_mask", "prompt_differs", "special_text"]
Change = Literal["folded", "shortened", "straddled", "spelled", "unknown_token", "cut", "unordered"]
CHANGES: dict[Change, str] = {
    "folded": "the system turn is part of the user's, as the chat template has no place for it",
    "shortened": "the chat template leaves out a part of an answer, such as its reasoning",
    "straddled": "the first target token begins with the last characters of the prompt",
    "spelled": "a text spells special tokens, which stay text",
    "unknown_token": "the tokenizer has no token for a part of the text",
    "cut": "target tokens beyond max_length are lost",
    "unordered": "the chosen response is not scored above the rejected one",
}
"""What can happen to a record on its way to tokens. `cut` and `unordered` are found in `fusejax.data.examples`."""


class ChatError(Exception):
    """A conversation that cannot be trained on.

    `reason` is `template_error` (the template refuses it), `empty_mask` (no assistant turn to train on),
    `empty_response` (an assistant turn without text), `no_mask` (the template's rendering hides where the turn is),
    `prompt_differs` (the template asks with another text than it trains on) or `special_text` (a text spells a special
    token, and this tokenizer cannot keep it as text).
    """

    def __init__(self, reason: Reason, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


class Encoded(NamedTuple):
    tokens: Int32[np.ndarray, "n"]
    loss_mask: Bool[np.ndarray, "n"]
    """True where the token is a target."""
    changes: frozenset[Change]


class _Turn(NamedTuple):
    """Where an assistant turn lies in the rendered conversation, in characters."""

    start: int
    """Where the prompt ends."""
    end: int
    """Where the answer's text ends."""
    closing: str
    """What the template writes after the turn when the conversation ends there."""


class _Rendered(NamedTuple):
    text: str
    turns: list[_Turn]
    changes: frozenset[Change]


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Loads a tokenizer that conversations can be masked with; see `chat_template.load_tokenizer`.

    Raises:
      UserError: it cannot be loaded, is not a fast one (only those give offsets), or has no chat template.
    """
    tokenizer = chat_template.load_tokenizer(source)
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer {source}: {type(tokenizer).__name__} is not a fast tokenizer (no tokenizer.json)")
    return tokenizer


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    first: int = 0,
    stop_ids: Collection[int] = (),
    date: datetime.date = DEFAULT_DATE,
) -> Encoded:
    """Token ids of a conversation and which of them are targets.

    With a ChatML template, the targets of a question and its answer are the tokens between the brackets:

        <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n[Hello<|im_end|>]\\n

    Args:
      tokenizer: from `load_tokenizer`.
      messages: the whole conversation.
      first: the assistant turns from `messages[first]` on are targets. Where it is not 0, the last turn must be one.
      stop_ids: tokens that stop generation. A turn's targets reach to the first of these that the template writes after
        it; where there is none, to the special token that follows it.
      date: today's, as far as the template is told.

    Raises:
      ChatError: the mask cannot be found, or would be empty.
    """
    (result,) = encode_conversations(tokenizer, [messages], first=[first], stop_ids=stop_ids, date=date)
    if isinstance(result, ChatError):
        raise result
    return result


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    *,
    first: Sequence[int] | None = None,
    stop_ids: Collection[int] = (),
    date: datetime.date = DEFAULT_DATE,
) -> list[Encoded | ChatError]:
    """`encode_conversation` for many at once, tokenised on all cores; errors come back in the place of results.

    `first` has one number for each conversation; by default all their assistant turns are targets.
    """
    stop_names = tuple(str(tokenizer.added_tokens_decoder[i]) for i in stop_ids if i in tokenizer.added_tokens_decoder)
    rendered = [
        _render_turns(tokenizer, messages, start, stop_names, date)
        for messages, start in zip(conversations, first or [0] * len(conversations), strict=True)
    ]
    whole = [result for result in rendered if not isinstance(result, ChatError)]
    try:
        texts = iter(
            tokenize(tokenizer, [result.text for result in whole], ["spelled" in result.changes for result in whole])
        )
    except SpelledError as error:
        if len(conversations) == 1:
            return [ChatError("special_text", str(error))]
        each = zip(conversations, first or [0] * len(conversations), strict=True)
        return [
            encode_conversations(tokenizer, [messages], first=[start], stop_ids=stop_ids, date=date)[0]
            for messages, start in each
        ]
    added, stops = frozenset(tokenizer.added_tokens_decoder), frozenset(stop_ids)
    return [
        result if isinstance(result, ChatError) else _encode(tokenizer, result, next(texts), added=added, stops=stops)
        for result in rendered
    ]


def turn_end(tokenizer: PreTrainedTokenizerBase, stop_ids: Collection[int]) -> int | None:
    """The token that ends answers in training; None where the template takes no question with an answer."""
    question: Message = {"role": "user", "content": "Question"}

    def talk(answer: str) -> list[Message]:
        return [question, {"role": "assistant", "content": answer}]

    try:
        # Where the generation prompt opens a thought, only answers that begin with it are trained on.
        asked = render(tokenizer, [question], add_generation_prompt=True)
        opened = asked[_common_length(asked, render(tokenizer, talk("Answer"))) :]
        tokens, loss_mask, _ = encode_conversation(tokenizer, talk(f"{opened}Answer"), stop_ids=stop_ids)
    except (TemplateError, ChatError):
        return None
    return int(tokens[loss_mask][-1])


def _render_turns(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    first: int,
    stop_names: tuple[str, ...],
    date: datetime.date,
) -> _Rendered | ChatError:
    """The conversation as text, and where in it the assistant turns to train on are."""
    try:
        hidden, spelled = hide(tokenizer, messages)
        turns, text = as_template_takes(tokenizer, hidden, date=date)
        folded = len(hidden) - len(turns)
        said = [i for i, turn in enumerate(turns) if turn["role"] == "assistant" and i + folded >= first]
        if not said or (first and said[-1] != len(turns) - 1):
            return ChatError("empty_mask", "the last turn is not assistant's" if first else "no assistant turn")
        sentinel = "Sentinel"
        while sentinel in text:
            sentinel += "l"
        found, shortened = [], False
        for i in said:
            prompt = _prompt(tokenizer, hidden[: i + folded], date)
            turn, lost = _find_turn(tokenizer, turns, i, text, prompt, sentinel, stop_names, date)
            found.append(turn)
            shortened |= lost
    except TemplateError as error:
        return ChatError("template_error", str(error))
    except SpelledError as error:
        return ChatError("special_text", str(error))
    except ChatError as error:
        return error
    changes: dict[Change, bool] = {"folded": folded > 0, "shortened": shortened, "spelled": spelled}
    return _Rendered(text, found, frozenset(change for change, happened in changes.items() if happened))


def _prompt(tokenizer: PreTrainedTokenizerBase, before: Sequence[dict[str, str]], date: datetime.date) -> str | None:
    """What a model is asked with after these turns; None where there are none, and nobody is asked."""
    if not before:
        return None
    return as_template_takes(tokenizer, before, add_generation_prompt=True, date=date)[1]


def _find_turn(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, str]],
    turn: int,
    text: str,
    prompt: str | None,
    sentinel: str,
    stop_names: tuple[str, ...],
    date: datetime.date,
) -> tuple[_Turn, bool]:
    """Where the turn is, and whether the template has shortened its answer."""
    where = f"turn {turn} of {len(messages)}"
    answer = messages[turn]["content"].strip()
    if not answer:
        raise ChatError("empty_response", f"{where} has no text")
    swapped = list(messages)
    swapped[turn] = {"role": "assistant", "content": sentinel}
    parts = render(tokenizer, swapped, date=date).split(sentinel)
    if len(parts) != 2:
        times = f"{len(parts) - 1} times" if len(parts) > 1 else "nowhere"
        raise ChatError("no_mask", f"the template writes {where} {times}")
    before, after = parts
    prompt = before if prompt is None else prompt
    if not text.startswith(prompt):
        raise ChatError("prompt_differs", _difference(tokenizer, where, prompt, text))
    start, end = len(prompt), len(text) - len(after)
    if not text.endswith(after):
        raise ChatError("no_mask", f"the template writes other things after {where} depending on its text")
    written = text[start:end].strip()
    if not written:
        raise ChatError("empty_response", f"the template leaves nothing of {where}")
    # A generation prompt may have the answer's beginning, a thought's opening, say.
    shortened = answer not in written and not text[:end].rstrip().endswith(answer)
    if shortened:
        # Without what the template writes before every answer.
        kept = written.removeprefix(before.removeprefix(prompt).strip()).strip()
        if not kept:
            raise ChatError("empty_response", f"the template leaves nothing of {where}")
        if kept not in answer:
            raise ChatError("no_mask", f"the template rewrites {where}: {reveal(tokenizer, kept[:20])!r}")
    # Of what follows, only the token that stops generation counts, if it is the first.
    if turn == len(messages) - 1 or after.lstrip().startswith(stop_names):
        return _Turn(start, end, closing=after), shortened
    *_, closing = render(tokenizer, swapped[: turn + 1], date=date).split(sentinel)
    return _Turn(start, end, closing), shortened


def _difference(tokenizer: PreTrainedTokenizerBase, where: str, prompt: str, text: str) -> str:
    """Where the prompt is not the beginning of the text."""
    same = _common_length(prompt, text)
    asked, trained = (reveal(tokenizer, each[max(0, same - 20) : same + 30]) for each in (prompt, text))
    return f"asked for {where}, the model reads {asked!r}, but it would be trained on {trained!r}"


def _common_length(a: str, b: str) -> int:
    """How many characters both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    rendered: _Rendered,
    found: Tokens,
    *,
    added: frozenset[int],
    stops: frozenset[int],
) -> Encoded | ChatError:
    """Turns characters into tokens."""
    text = rendered.text
    ids, changes = found.ids, set(rendered.changes)
    # Where each token ends, in characters; a token starts where the one before ends. The tokenizer's own starts would
    # be wrong: with `trim_offsets` they leave out leading spaces, which belong to the token. The tokens of one
    # character (an emoji can be several) share its end.
    ends = np.maximum.accumulate([end for _, end in found.offsets])
    loss_mask = np.zeros(len(ids), dtype=bool)
    for turn in rendered.turns:
        start = int(np.searchsorted(ends, turn.start, side="right"))  # the first token that reaches into the turn
        straddles = bool(start and ends[start - 1] < turn.start)
        if straddles:
            changes.add("straddled")
        # What is before an added token has no influence on the tokens behind it, so the prompt's end is enough.
        known = next((i for i in range(start - 1, 0, -1) if ids[i] in added), 0)
        tail = text[ends[known - 1] if known else 0 : turn.start]
        asked = _prompt_tail(tokenizer, tail, "spelled" in rendered.changes)
        if ids[known:start] != (asked[: start - known] if straddles else asked):
            return ChatError("prompt_differs", f"{reveal(tokenizer, tail)!r} has other tokens where an answer follows")
        stop = _end_of_turn(text, turn, ids, ends, special=added | stops, stops=stops)
        if isinstance(stop, ChatError):
            return stop
        loss_mask[start:stop] = True
    tokens = np.array(ids, dtype=np.int32)
    if _has_unknown(tokenizer, text, tokens, ends):
        changes.add("unknown_token")
    return Encoded(tokens, loss_mask, frozenset(changes))


@functools.lru_cache(maxsize=1024)
def _prompt_tail(tokenizer: PreTrainedTokenizerBase, text: str, spelled: bool) -> list[int]:
    """Tokens of a prompt's end: mostly a generation prompt, which is always the same."""
    (tokens,) = tokenize(tokenizer, [text], [spelled])
    return tokens.ids


def _end_of_turn(
    text: str, turn: _Turn, ids: list[int], ends: np.ndarray, *, special: frozenset[int], stops: frozenset[int]
) -> int | ChatError:
    """The position behind the turn's last target: the first token that stops generation, of those that the template
    writes after the turn, or where it writes none of them, the special token that follows the turn."""
    behind = text[turn.end :]
    closing = turn.closing.lstrip()
    gap = len(behind) - len(behind.lstrip())
    # As far as the text is what the template writes after the turn, and not the next turn.
    same = _common_length(behind[gap:], closing)
    first = int(np.searchsorted(ends, turn.end + gap, side="right"))
    last = int(np.searchsorted(ends, turn.end + gap + same, side="right"))
    stop = next((token for token in range(first, last) if ids[token] in stops), None)
    if stop is not None:
        return stop + 1
    if first == len(ids) or ids[first] not in special:
        return ChatError("no_mask", f"no special token ends the turn, but {behind.lstrip()[:20]!r}")
    if first >= last:  # it is not what ends this turn (`[INST]`, say)
        return ChatError("no_mask", f"{text[turn.end : ends[first]]!r} starts the next turn, and nothing ends this")
    return first + 1


def _has_unknown(tokenizer: PreTrainedTokenizerBase, text: str, tokens: np.ndarray, ends: np.ndarray) -> bool:
    """Whether the tokenizer found no token for some characters. (As a special token, its name stands in the text.)"""
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return False
    positions = np.flatnonzero(tokens == unknown)
    return any(str(tokenizer.unk_token) not in text[ends[i - 1] if i else 0 : ends[i]] for i in positions)
