"""A conversation as token ids and a loss mask, with any tokenizer's own chat template.

The ids are exactly those of `tokenizer.apply_chat_template(messages, tokenize=True)`: special tokens come from the
template alone, so there is never a second BOS. Where the template refuses a system turn, `messages` are those of
`fusejax.common.chat_template`. The mask covers the assistant's tokens and the token that ends the turn.

Few templates mark what the assistant says, so it is found by substitution. The conversation is rendered twice, the
second time with a sentinel for one assistant turn; what stands before and after the sentinel also stands before and
after the answer, and what lies between is the answer as the template writes it (trimmed, say). Offsets then turn
characters into tokens. Where the two renderings do not fit together, or no special token ends the turn, the
conversation is refused: it is never masked by guess.

What a template writes before an answer, but not into the generation prompt, is for the model to write, so it belongs to
the answer. Qwen3's writes an empty block of reasoning, `<think>\\n\\n</think>\\n\\n`, before a last answer without any.
As that block is a target, too, the trained model answers at once after the plain generation prompt, and also after that
of `enable_thinking=False`, which ends with the block.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32
from transformers import PreTrainedTokenizerBase

from fusejax.common import chat_template
from fusejax.common.chat_template import TemplateError, as_template_takes, render
from fusejax.common.cli import UserError
from fusejax.data.records import Message

TrainOn = Literal["all", "last"]
Reason = Literal["template_error", "empty_mask", "empty_response", "no_mask"]


class ChatError(Exception):
    """A conversation that cannot be trained on.

    `reason` is `template_error` (the template refuses it), `empty_mask` (no assistant turn to train on),
    `empty_response` (an assistant turn without text) or `no_mask` (the template's rendering hides where the turn is).
    """

    def __init__(self, reason: Reason, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


class Encoded(NamedTuple):
    tokens: Int32[np.ndarray, "n"]
    loss_mask: Bool[np.ndarray, "n"]
    """True where the token is a target."""


class _Turn(NamedTuple):
    """Where an assistant turn lies in the rendered conversation, in characters."""

    start: int
    end: int
    closing: str
    """What the template writes after the turn when the conversation ends there."""


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
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, train_on: TrainOn = "all"
) -> Encoded:
    """Token ids of a conversation and which of them are targets.

    With a ChatML template, the targets of a question and its answer are the tokens between the brackets:

        <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n[Hello<|im_end|>]\\n

    Args:
      tokenizer: from `load_tokenizer`.
      messages: the whole conversation.
      train_on: all assistant turns, or only the last one, which must then end the conversation.

    Raises:
      ChatError: the mask cannot be found, or would be empty.
    """
    (result,) = encode_conversations(tokenizer, [messages], train_on=train_on)
    if isinstance(result, ChatError):
        raise result
    return result


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]], *, train_on: TrainOn = "all"
) -> list[Encoded | ChatError]:
    """`encode_conversation` for many at once, tokenised on all cores; errors come back in the place of results."""
    rendered = [_render_turns(tokenizer, messages, train_on) for messages in conversations]
    texts = [result[0] for result in rendered if not isinstance(result, ChatError)]
    if not texts:
        return [result for result in rendered if isinstance(result, ChatError)]
    # As apply_chat_template calls it.
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    tokens = zip(batch["input_ids"], batch["offset_mapping"], strict=True)
    special = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    return [
        result if isinstance(result, ChatError) else _mask_turns(*result, *next(tokens), special=special)
        for result in rendered
    ]


def _render_turns(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], train_on: TrainOn
) -> tuple[str, list[_Turn]] | ChatError:
    """The conversation as text, and where in it the assistant turns to train on are."""
    try:
        turns, text = as_template_takes(tokenizer, messages)
        said = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
        if train_on == "last":
            said = [i for i in said if i == len(turns) - 1]
        if not said:
            why = "no assistant turn" if train_on == "all" else "the last turn is not assistant's"
            return ChatError("empty_mask", why)
        sentinel = "Sentinel"
        while sentinel in text:
            sentinel += "l"
        opening = _answer_opening(tokenizer, tokenizer.get_chat_template())
        return text, [_find_turn(tokenizer, turns, i, text, sentinel, opening) for i in said]
    except TemplateError as error:
        return ChatError("template_error", str(error))
    except ChatError as error:
        return error


@functools.lru_cache(maxsize=8)
def _answer_opening(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """What the template writes between its generation prompt and an answer: nothing, or an empty block of reasoning.

    Spaces do not count, see `_find_turn`; nor does what a template without a generation prompt writes.

    Args:
      template: of the tokenizer, for the cache.
    """
    question = [{"role": "user", "content": "Question"}]
    try:
        closed, asked = render(tokenizer, question), render(tokenizer, question, add_generation_prompt=True)
        answered = render(tokenizer, [*question, {"role": "assistant", "content": "Sentinel"}])
    except TemplateError:
        return ""
    before, found, _ = answered.partition("Sentinel")
    opening = before.removeprefix(asked)
    return opening if found and asked != closed and before.startswith(asked) and opening.strip() else ""


def _find_turn(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, str]],
    turn: int,
    text: str,
    sentinel: str,
    opening: str,
) -> _Turn:
    where = f"turn {turn} of {len(messages)}"
    if not messages[turn]["content"].strip():
        raise ChatError("empty_response", f"{where} has no text")
    swapped = list(messages)
    swapped[turn] = {"role": "assistant", "content": sentinel}
    parts = render(tokenizer, swapped).split(sentinel)
    if len(parts) != 2:
        raise ChatError("no_mask", f"the template writes {where} {len(parts) - 1} times")
    before, after = parts
    before = before.removesuffix(opening)
    start, end = len(before), len(text) - len(after)
    if not (text.startswith(before) and text.endswith(after)):
        raise ChatError("no_mask", f"the template writes other things around {where} depending on its text")
    if start >= end:
        raise ChatError("empty_response", f"the template leaves nothing of {where}")
    if text[start:end].removeprefix(opening) not in messages[turn]["content"]:
        raise ChatError("no_mask", f"the template rewrites {where}: {text[start : min(end, start + 20)]!r}")
    # Mistral's `[/INST] Hello`: the space before the answer is the assistant's if the generation prompt ends before it.
    if (
        before.endswith(" ")
        and turn > 0
        and not render(tokenizer, messages[:turn], add_generation_prompt=True).endswith(" ")
    ):
        start = len(before.rstrip(" "))
    if turn == len(messages) - 1:
        return _Turn(start, end, closing=after)
    *_, closing = render(tokenizer, swapped[: turn + 1]).split(sentinel)
    return _Turn(start, end, closing)


def _mask_turns(
    text: str, turns: list[_Turn], ids: list[int], offsets: list[tuple[int, int]], *, special: set[int]
) -> Encoded | ChatError:
    tokens = np.array(ids, dtype=np.int32)
    # Where each token ends, in characters; a token starts where the one before ends. The tokenizer's own starts would
    # be wrong: with `trim_offsets` they leave out leading spaces, which belong to the token. The tokens of one
    # character (an emoji can be several) share its end.
    ends = np.maximum.accumulate([end for _, end in offsets])
    loss_mask = np.zeros(len(tokens), dtype=bool)
    for turn in turns:
        first = np.searchsorted(ends, turn.start, side="right")  # the first token that reaches into the turn
        behind = text[turn.end :]
        position = turn.end + len(behind) - len(behind.lstrip())
        last = np.searchsorted(ends, position, side="right")
        if last == len(tokens) or ids[last] not in special:
            return ChatError("no_mask", f"no special token ends the turn, but {text[position : position + 20]!r}")
        # A token that only the next turn brings (`[INST]`, say) starts that turn and does not end this one.
        if not turn.closing.lstrip().startswith(text[position : ends[last]]):
            return ChatError("no_mask", f"{text[position : ends[last]]!r} starts the next turn, and nothing ends this")
        loss_mask[first : last + 1] = True
    return Encoded(tokens, loss_mask)
