"""Conversations as ArmoRM reads them: token ids, and the position whose hidden state the gate reads.

That position is the end of the last user turn: the start of the last occurrence of the tokens that stand between a
user's text and the assistant's answer, which for Llama 3 are `<|eot_id|>`, the assistant's header and a blank line. A
text that quotes those tokens would move the position, so only the chat template writes special tokens; what users and
models wrote is tokenized as plain characters.
"""

import re
from collections.abc import Sequence
from typing import Any

from fusejax.common.cli import UserError

_PRIVATE_USE = range(0xE000, 0xF900)
"""Characters that mean nothing in Unicode, and are left as they are by chat templates."""


class Encoder:
    """Token ids of conversations in a tokenizer's chat template, without a generation prompt."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        special = {str(token): index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        # Long names first, so that the regular expression does not match a name that is only the start of another.
        self._names = sorted(special, key=len, reverse=True)
        self._special = special
        self._any_name = re.compile("|".join(map(re.escape, self._names)) or r"(?!)")

    def __call__(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Special tokens of the template are tokenized as such; their names within messages are plain text.

        Raises:
          jinja2.TemplateError: the template refuses the conversation.
        """
        names, any_name = self._names, self._any_name
        written = "".join(message["content"] for message in messages)
        mark = next(chr(code) for code in _PRIVATE_USE if chr(code) not in written)
        hidden = [
            message | {"content": any_name.sub(lambda m: f"{mark}{names.index(m[0])}{mark}", message["content"])}
            for message in messages
        ]
        text = self._tokenizer.apply_chat_template(hidden, tokenize=False)
        tokens: list[int] = []
        start = 0
        for match in [*any_name.finditer(text), None]:
            plain = text[start : match.start() if match else len(text)]
            plain = re.sub(f"{mark}([0-9]+){mark}", lambda m: names[int(m[1])], plain)
            if plain:
                tokens += self._tokenizer.encode(plain, add_special_tokens=False, split_special_tokens=True)
            if match:
                tokens.append(self._special[match[0]])
                start = match.end()
        return tokens


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
