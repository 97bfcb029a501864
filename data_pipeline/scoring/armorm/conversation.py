"""Conversations as ArmoRM reads them: token ids, and the position whose hidden state the gate reads.

That position is the end of the last user turn: the start of the last occurrence of the tokens that stand between a
user's text and the assistant's answer, which for Llama 3 are `<|eot_id|>`, the assistant's header and a blank line. A
text that quotes those tokens would move the position, so only the chat template writes special tokens; what users and
models wrote is tokenized as plain characters.
"""

from collections.abc import Sequence
from typing import Any

from fusejax.common.cli import UserError

_PRIVATE_USE = range(0xE000, 0xF900)
"""Characters that mean nothing in Unicode, and are left as they are by chat templates."""


def gating_pattern(tokenizer: Any) -> list[int]:
    """What the chat template puts between a user's text and the answer, in token ids.

    For the published model: 128009, 128006, 78191, 128007, 271.

    Raises:
      UserError: there is no chat template, or none that holds both texts and something between them.
    """
    where = f"reward model {tokenizer.name_or_path}"
    if not tokenizer.chat_template:
        raise UserError(f"{where}: the tokenizer has no chat template")
    asked, answered = map(chr, _PRIVATE_USE[:2])
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    between = text.partition(asked)[2].partition(answered)[0]
    if not between or answered not in text:
        raise UserError(f"{where}: the chat template has nothing between a user's turn and the answer")
    return tokenizer.encode(between, add_special_tokens=False)


def last_occurrence(tokens: Sequence[int], pattern: Sequence[int]) -> int | None:
    """Where the last occurrence of the pattern starts; None where there is none."""
    tokens, (first, *rest) = list(tokens), pattern
    for start in range(len(tokens) - len(pattern), -1, -1):
        if tokens[start] == first and tokens[start + 1 : start + len(pattern)] == rest:
            return start
    return None
