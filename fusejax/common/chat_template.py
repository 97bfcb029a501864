"""Conversations rendered by a tokenizer's chat template, alike for sampling, training and evaluation.

Where a template refuses a system turn (Gemma's, some of Mistral's), the system text is put at the beginning of the
first user turn, followed by a blank line. So every source model and the target get the same prompt, in sampling and in
training.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from fusejax.common.cli import UserError, one_line

Tokenizer = Any
"""A `transformers.PreTrainedTokenizerBase`, which takes a second to import."""


class TemplateError(Exception):
    """The chat template does not take these turns; the text is the template's own error."""


def load_tokenizer(source: str | Path) -> Tokenizer:
    """Loads the tokenizer of a Hugging Face directory, or of a Hub id.

    Raises:
      UserError: it cannot be loaded, or has no chat template.
    """
    # Anything else than `name` or `owner/name` is no Hub id, so the Hub's complaint would mislead.
    if not Path(source).is_dir() and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", str(source)):
        raise UserError(f"tokenizer {source}: no such directory")
    from transformers import AutoTokenizer  # slow to import, and not needed where all answers are there

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source))
    except Exception as error:  # whatever the files hold: `tokenizers` raises plain Exception
        raise UserError(f"tokenizer {source}: cannot be loaded: {one_line(error)}") from error
    if not tokenizer.chat_template:
        raise UserError(
            f"tokenizer {source}: has no chat template; add chat_template.jinja beside its files, "
            "or use the instruction-tuned model"
        )
    return tokenizer


def render(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False) -> str:
    """The text of a conversation, just as the template writes it.

    Args:
      add_generation_prompt: open the assistant's next turn.

    Raises:
      TemplateError: the template does not take these turns.
    """
    try:
        text: Any = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:  # what template code can raise
        raise TemplateError(one_line(error)) from None
    return text


def as_template_takes(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
) -> tuple[list[dict[str, str]], str]:
    """The conversation in turns that the template takes, and its text.

    The turns are `messages` themselves, or, where the template refuses them, with the system turn as the beginning of
    the user turn that follows it:

        system "Be brief.", user "Hi"   ->   user "Be brief.\\n\\nHi"

    Arguments and errors as of `render`.
    """
    turns = [dict(message) for message in messages]
    try:
        return turns, render(tokenizer, turns, add_generation_prompt=add_generation_prompt)
    except TemplateError:
        if [turn["role"] for turn in turns[:2]] != ["system", "user"]:
            raise
        system, user, *rest = turns
        folded = [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]
        return folded, render(tokenizer, folded, add_generation_prompt=add_generation_prompt)


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Token ids of a conversation and of what opens the assistant's answer.

    Special tokens come from the template alone, as in `tokenizer.apply_chat_template(..., tokenize=True)`.

    Raises:
      TemplateError: the template does not take these turns, or writes nothing.
    """
    _, text = as_template_takes(tokenizer, messages, add_generation_prompt=True)
    if not text:
        raise TemplateError("the template writes nothing")
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
