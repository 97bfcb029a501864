"""Conversations as token ids, the same for every backend: what is asked, and what an answer is stored under."""

import json
from pathlib import Path
from typing import Any

import jinja2

from data_pipeline.stage_files import one_line
from fusejax.common.cli import UserError


class Refused(Exception):
    """A conversation that the model cannot be asked; the text is `reason: detail`."""


class ChatTokenizer:
    """A checkpoint's tokenizer with its chat template, and the length of its context."""

    def __init__(self, name: str, directory: Path, max_model_len: int | None):
        """Loads the tokenizer.

        Raises:
          UserError: it cannot be loaded, has no chat template, or the model has a shorter context than `max_model_len`.
        """
        import transformers  # Slow to import, and not needed where all answers are there.

        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory)
        except Exception as error:  # Whatever a broken checkpoint makes transformers raise.
            raise UserError(f"sources: {name}: {directory} has no tokenizer: {one_line(error)}") from error
        if not self._tokenizer.chat_template:
            raise UserError(f"sources: {name}: the tokenizer in {directory} has no chat template")
        self.context = max_model_len or _positions(directory)

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of the conversation, and of what opens the answer.

        Raises:
          Refused: the template does not take these turns, or they leave no room for an answer.
        """
        try:
            ids = self._render(messages)
        except jinja2.TemplateError as error:
            raise Refused(f"chat_template: {one_line(error)}") from None
        if len(ids) >= self.context:
            raise Refused(f"prompt_too_long: {len(ids)} of {self.context} tokens")
        return ids

    def _render(self, messages: list[dict[str, str]]) -> list[int]:
        def render(turns: list[dict[str, str]]) -> list[int]:
            return self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)

        try:
            return render(messages)
        except jinja2.TemplateError:
            # Gemma's template, and some of Mistral's, refuse a system turn: it opens the user's turn instead.
            if len(messages) < 2 or messages[0]["role"] != "system":
                raise
            system, user, *rest = messages
            return render([{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest])


def _positions(directory: Path) -> int:
    config = json.loads((directory / "config.json").read_text())
    return config.get("text_config", config).get("max_position_embeddings") or 2**31
