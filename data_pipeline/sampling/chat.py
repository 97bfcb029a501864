"""Conversations as token ids, the same for every backend: what is asked, and what an answer is stored under."""

import datetime
import functools
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.sampling import reasoning
from fusejax.common.chat_template import DEFAULT_DATE, TemplateError, Tokenizer, encode_prompt, load_tokenizer
from fusejax.common.cli import UserError

TAIL = 24
"""Tokens at the end of a prompt, among which a tag that opens a thought would be, spelled out letter by letter."""


class Refused(Exception):
    """A conversation that cannot be put to the model; the text is `reason: detail`."""


class ChatTokenizer:
    """A checkpoint's tokenizer with its chat template, and the length of its context."""

    def __init__(
        self,
        name: str,
        directory: Path,
        max_model_len: int | None,
        arguments: Mapping[str, Any] | None = None,
        date: datetime.date = DEFAULT_DATE,
    ):
        """Loads the tokenizer.

        Args:
          name: the source's, for errors.
          directory: where the checkpoint is.
          max_model_len: the length of the context, if not the model's own.
          arguments: of the chat template, such as `enable_thinking`.
          date: today's, as far as the template is told.

        Raises:
          UserError: it cannot be loaded, has no chat template, or one that knows no such argument.
        """
        try:
            self._tokenizer = load_tokenizer(directory)
        except UserError as error:
            raise UserError(f"sources: {name}: {error}") from error
        self.context = max_model_len or _positions(directory)
        self.changes: Counter[str] = Counter()
        """What was changed of the prompts so far, as `fusejax.common.chat_template.encode` says -> how many."""
        self._date = date
        self._bos = [each for each in self._tokenizer("a").input_ids[:1] if each == self._tokenizer.bos_token_id]
        """What the tokenizer itself begins a text with."""
        set_arguments(self._tokenizer, f"sources: {name}: chat_template_kwargs", arguments or {})

    def encode(self, messages: list[dict[str, str]], prefix: str = "", *, bos_again: bool = False) -> list[int]:
        """Token ids of the conversation with the generation prompt.

        Args:
          prefix: the beginning of the answer, put into the model's mouth just as it is written here; tokenised together
            with the generation prompt, as by `continue_final_message` in transformers.
          bos_again: prepend the BOS once more if the tokenizer adds one to text, as scripts do that tokenise what a
            template has rendered.

        Raises:
          Refused: the template does not take these turns, or they leave no room for an answer.
        """
        try:
            ids, changes = encode_prompt(self._tokenizer, messages, prefix=prefix, date=self._date)
        except TemplateError as error:
            raise Refused(f"chat_template: {error}") from None
        ids = self._admitted(ids, bos_again)
        self.changes.update(changes)
        return ids

    def encode_text(self, text: str, *, bos_again: bool = False) -> list[int]:
        """Token ids of a whole prompt as text: the special tokens that it spells out, and no others but the BOS that
        `bos_again` prepends, as for `encode`.

        Raises:
          Refused: it is empty, or leaves no room for an answer.
        """
        if not text:
            raise Refused("empty_prompt: no text")
        return self._admitted(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], bos_again)

    def _admitted(self, ids: list[int], bos_again: bool) -> list[int]:
        if bos_again:
            ids = [*self._bos, *ids]
        if len(ids) >= self.context:
            raise Refused(f"prompt_too_long: {len(ids)} of {self.context} tokens")
        return ids

    def opened(self, prompt: tuple[int, ...]) -> str:
        """The tag with which a prompt's generation prompt opens a thought; "" if it opens none."""
        return reasoning.opened(self._tokenizer.decode(list(prompt[-TAIL:]), skip_special_tokens=False))


def set_arguments(tokenizer: Tokenizer, key: str, arguments: Mapping[str, Any]) -> None:
    """Has the tokenizer's chat template be told these arguments, always.

    Args:
      key: of the arguments, for errors.

    Raises:
      UserError: the template knows no such argument.
    """
    for argument in arguments:
        # A template takes any argument, and passes over what it does not know.
        if not re.search(rf"\b{re.escape(argument)}\b", str(tokenizer.chat_template)):
            raise UserError(f"{key}: the chat template of {tokenizer.name_or_path} does not use {argument}")
    if arguments:
        tokenizer.apply_chat_template = functools.partial(tokenizer.apply_chat_template, **arguments)


def _positions(directory: Path) -> int:
    config = json.loads((directory / "config.json").read_text())
    return config.get("text_config", config).get("max_position_embeddings") or 2**31
