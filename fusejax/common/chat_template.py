"""Conversations rendered by a tokenizer's chat template, alike for sampling, training and evaluation.

Where a template refuses a system turn (Gemma-2's, Mistral's first ones) or leaves it out, its text is put at the
beginning of the first user turn, followed by a blank line. So every source model and the target get the same prompt, in
sampling and in training.

Some templates write today's date. They are told a fixed one instead, or tomorrow's prompts would be other prompts.
"""

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from fusejax.common.cli import ConfigModel, UserError, one_line
from fusejax.common.plain_text import SpelledError, hide, tokenize

Tokenizer = Any
"""A `transformers.PreTrainedTokenizerBase`, which takes a second to import."""

DEFAULT_DATE = datetime.date(2024, 7, 26)
"""The date that Llama 3.1's and 3.2's own templates fall back to."""


class ChatConfig(ConfigModel):
    date: datetime.date = DEFAULT_DATE
    """Today's date for chat templates that write one (Llama 3), so that tomorrow's prompts are the same. Give sampling,
    training and evaluation the same."""


class TemplateError(Exception):
    """The chat template does not take these turns; the text is the template's own error."""


class Encoded(NamedTuple):
    """A conversation as token ids, and how it was changed for that: `folded`, `spelled`; see `encode`."""

    tokens: list[int]
    changes: frozenset[str]


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
        tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    except Exception as error:  # whatever the files hold: `tokenizers` raises plain Exception
        raise UserError(f"tokenizer {source}: cannot be loaded: {one_line(error)}") from error
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several, by name, as Command R has one more for tools
        if "default" not in template:
            raise UserError(
                f"tokenizer {source}: none of its chat templates ({', '.join(sorted(template))}) is called default"
            )
        tokenizer.chat_template = template["default"]
    if not tokenizer.chat_template:
        raise UserError(
            f"tokenizer {source}: has no chat template; add chat_template.jinja beside its files, "
            "or use the instruction-tuned model"
        )
    return tokenizer


def writes_date(tokenizer: Tokenizer) -> bool:
    """Whether the chat template asks for a date."""
    return any(name in str(tokenizer.chat_template) for name in ("strftime_now", "set date_string"))


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
    date: datetime.date = DEFAULT_DATE,
) -> str:
    """The text of a conversation, just as the template writes it.

    Args:
      add_generation_prompt: open the assistant's next turn.
      date: today's, as far as the template is told.

    Raises:
      TemplateError: the template does not take these turns.
    """
    told: dict[str, Any] = {}
    if writes_date(tokenizer):
        told["chat_template"] = _clock(date) + tokenizer.get_chat_template()
        told["date_string"] = date.strftime("%d %b %Y")  # for Llama's, which set it where it is not given
    try:
        text: Any = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **told,
        )
    except jinja2.TemplateError as error:
        raise TemplateError(one_line(error)) from None
    except (TypeError, ValueError, LookupError) as error:  # what else template code can raise
        raise TemplateError(f"the chat template fails on these turns ({one_line(error)})") from None
    return text


@functools.cache
def _clock(date: datetime.date) -> str:
    """A template's beginning, by which the function that tells the time tells this date, at midnight.

    A macro, since transformers lets no function into a template.
    """
    now = datetime.datetime.combine(date, datetime.time())
    directives = [f"%{flag}{letter}" for flag in ("-", "") for letter in "aAbBcCdDeFgGhHIjklmMnpPrRSTuUVwWxXyYZ"]
    replaced = "".join(f" | replace({json.dumps(each)}, {json.dumps(now.strftime(each))})" for each in directives)
    # The empty expression keeps a line break at the beginning of the template, which one behind a block would not be.
    return "{% macro strftime_now(format) %}{{ format" + replaced + " }}{% endmacro %}{{ '' }}"


def as_template_takes(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
    date: datetime.date = DEFAULT_DATE,
) -> tuple[list[dict[str, str]], str]:
    """The conversation in turns that the template takes, and its text.

    The turns are `messages` themselves, or, where the template refuses the system turn or leaves it out, with its text
    as the beginning of the user turn that follows it:

        system "Be brief.", user "Hi"   ->   user "Be brief.\\n\\nHi"

    Another system turn has no such place: where the template leaves it out, the conversation is refused.

    Arguments and errors as of `render`.
    """
    turns, text = _folded(tokenizer, messages, add_generation_prompt=add_generation_prompt, date=date)
    if any(turn["role"] == "system" and turn["content"].strip() not in text for turn in turns[1:]):
        raise TemplateError("the chat template leaves out a system turn that is not the first")
    return turns, text


def _folded(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, date: datetime.date
) -> tuple[list[dict[str, str]], str]:
    turns = [dict(message) for message in messages]
    if not turns or turns[0]["role"] != "system":
        return turns, render(tokenizer, turns, add_generation_prompt=add_generation_prompt, date=date)
    try:
        text = render(tokenizer, turns, add_generation_prompt=add_generation_prompt, date=date)
        if _has_system_turn(tokenizer, turns, text, add_generation_prompt=add_generation_prompt, date=date):
            return turns, text
        refusal = TemplateError("the chat template leaves out the system turn")
    except TemplateError as error:
        refusal = error
    if [turn["role"] for turn in turns[1:2]] != ["user"]:
        raise refusal
    system, user, *rest = turns
    together = f"{system['content']}\n\n{user['content']}" if system["content"].strip() else user["content"]
    folded = [{"role": "user", "content": together}, *rest]
    return folded, render(tokenizer, folded, add_generation_prompt=add_generation_prompt, date=date)


def _has_system_turn(
    tokenizer: Tokenizer, turns: list[dict[str, str]], text: str, *, add_generation_prompt: bool, date: datetime.date
) -> bool:
    """Whether the first turn, the system's, is in the text of the conversation, as it is or with a part taken out."""
    system, *others = turns
    said = system["content"].strip()
    if not said or (said in text and not any(said in turn["content"] for turn in others)):
        return True
    # Another turn says the same, or the template has rewritten it (SmolLM3's takes `/no_think` out).
    changed = [{**system, "content": f"{said}{said}"}, *others]
    return render(tokenizer, changed, add_generation_prompt=add_generation_prompt, date=date) != text


def encode_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    prefix: str = "",
    date: datetime.date = DEFAULT_DATE,
) -> Encoded:
    """Token ids of a conversation and of what opens the assistant's answer; see `encode`."""
    return encode(tokenizer, messages, add_generation_prompt=True, prefix=prefix, date=date)


def encode(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
    prefix: str = "",
    date: datetime.date = DEFAULT_DATE,
) -> Encoded:
    """Token ids of a conversation.

    Special tokens come from the template alone, as in `tokenizer.apply_chat_template(..., tokenize=True)`; what the
    messages spell of them stays text (`fusejax.common.plain_text`), which is the change `spelled`. A system turn that
    went to the user's is the change `folded`.

    Args:
      add_generation_prompt: open the assistant's next turn.
      prefix: written at the end, as it is: with a generation prompt, the beginning of the answer.
      date: today's, as far as the template is told.

    Raises:
      TemplateError: the template does not take these turns, or writes nothing.
    """
    try:
        # The prefix is text as the turns are, though the template does not see it.
        (*hidden, last), spelled = hide(tokenizer, [*messages, {"role": "assistant", "content": prefix}])
        turns, text = as_template_takes(tokenizer, hidden, add_generation_prompt=add_generation_prompt, date=date)
        if not text:
            raise TemplateError("the template writes nothing")
        (tokens,) = tokenize(tokenizer, [text + last["content"]], [spelled])
    except SpelledError as error:
        raise TemplateError(str(error)) from None
    changes = {"folded": len(turns) < len(hidden), "spelled": spelled}
    return Encoded(tokens.ids, frozenset(name for name, is_so in changes.items() if is_so))
