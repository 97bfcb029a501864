"""Conversations as token ids, the same for every backend: what is asked, and what an answer is stored under."""

import json
from pathlib import Path

from fusejax.common.chat_template import TemplateError, encode_prompt, load_tokenizer
from fusejax.common.cli import UserError


class Refused(Exception):
    """A conversation that cannot be put to the model; the text is `reason: detail`."""


class ChatTokenizer:
    """A checkpoint's tokenizer with its chat template, and the length of its context."""

    def __init__(self, name: str, directory: Path, max_model_len: int | None):
        """Loads the tokenizer.

        Raises:
          UserError: it cannot be loaded, or has no chat template.
        """
        try:
            self._tokenizer = load_tokenizer(directory)
        except UserError as error:
            raise UserError(f"sources: {name}: {error}") from error
        self.context = max_model_len or _positions(directory)

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of the conversation with the generation prompt.

        Raises:
          Refused: the template does not take these turns, or they leave no room for an answer.
        """
        try:
            ids = encode_prompt(self._tokenizer, messages).tokens
        except TemplateError as error:
            raise Refused(f"chat_template: {error}") from None
        if len(ids) >= self.context:
            raise Refused(f"prompt_too_long: {len(ids)} of {self.context} tokens")
        return ids


def _positions(directory: Path) -> int:
    config = json.loads((directory / "config.json").read_text())
    return config.get("text_config", config).get("max_position_embeddings") or 2**31
