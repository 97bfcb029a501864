"""The thought that some models write before their answer: cut off, so that only the answer is judged and trained on.

It ends with the last closing tag of its kind, whether an opening tag begins the text or stood in the generation prompt,
where a chat template puts it. A thought that does not end has no answer after it: then the text is empty. A tag in
quotes or backticks is spoken of, not meant.

Texts are cut when the table of answers is made. The store keeps them as they came, so that changing this samples
nothing again. A server may have cut already and given the thought in a field of its own.
"""

import re

import polars as pl

TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("◁think▷", "◁/think▷"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
"""What opens and what closes a thought: of DeepSeek-R1, Qwen3 and most others, of Magistral, Seed-OSS, OpenThinker,
Command A, Kimi and gpt-oss, and those that models are taught in instructions."""
_HARMONY = re.compile(r"^analysis(.*)assistantfinal(.*)$", re.DOTALL)
"""An answer of gpt-oss decoded without its special tokens."""
THOUGHT_ONLY = pl.col("reasoning").is_not_null() & (pl.col("text").str.strip_chars() == "")
"""An answer whose thought nothing follows."""


def opened(prompt: str) -> str:
    """The tag with which a generation prompt opens a thought; "" if it opens none.

    Args:
      prompt: its end is enough.

    >>> opened("<|assistant|><think>\\n"), opened("<|assistant|><think>\\n\\n</think>\\n\\n")
    ('<think>', '')
    """
    return next((opening for opening, _ in TAGS if prompt.rstrip().endswith(opening)), "")


def split(text: str, opened: str = "") -> tuple[str, str | None]:
    """The answer, and the thought before it; None where there is none.

    Args:
      text: what the model wrote.
      opened: the tag that was open already.

    >>> split("<think>3 + 4 is 7.</think>\\n\\nIt is 7."), split("3 + 4 is 7.</think>7"), split("It is 7.")
    (('It is 7.', '3 + 4 is 7.'), ('7', '3 + 4 is 7.'), ('It is 7.', None))
    >>> split("<think>3 + 4 is"), split("3 + 4 is", "<think>"), split("Write `</think>` at the end.")
    (('', '3 + 4 is'), ('', '3 + 4 is'), ('Write `</think>` at the end.', None))
    """
    for opening, closing in TAGS:
        begun = opened == opening or text.lstrip().startswith(opening)
        places = _places(closing, text)
        if not places and not begun:
            continue
        answer = text[places[-1] + len(closing) :] if places else ""
        if not places or _places(opening, answer):
            return "", _thought(text, opening)
        return answer.lstrip(), _thought(text[: places[-1]], opening)
    if found := _HARMONY.match(text):
        return found[2].lstrip(), found[1].strip()
    return text, None


def cut(answers: pl.DataFrame, opened: str = "") -> pl.DataFrame:
    """The table with thoughts moved from the column `text` to the column `reasoning`.

    Args:
      answers: with the columns `text` and `finish_reason`, and perhaps `reasoning`: where that is not null, the thought
        is cut off already.
      opened: the tag with which the generation prompt of these answers ends.
    """
    known = answers["reasoning"].to_list() if "reasoning" in answers.columns else [None] * len(answers)
    texts, thoughts = [], []
    for text, reason, thought in zip(answers["text"], answers["finish_reason"], known, strict=True):
        made = thought is None and reason != "error" and text is not None
        left, found = split(text, opened) if made else (text, thought)
        texts.append(left)
        thoughts.append(found)
    columns = {"text": pl.Series(texts, dtype=pl.String), "reasoning": pl.Series(thoughts, dtype=pl.String)}
    return answers.with_columns(**columns)


def _places(tag: str, text: str) -> list[int]:
    """Where the tag stands, except in quotes."""
    if tag not in text:
        return []
    starts = [found.start() for found in re.finditer(re.escape(tag), text)]
    ends = [start + len(tag) for start in starts]
    around = [(text[start - 1 : start], text[end : end + 1]) for start, end in zip(starts, ends, strict=True)]
    return [
        start
        for start, (left, right) in zip(starts, around, strict=True)
        if not (left == right and left in ("`", "'", '"'))
    ]


def _thought(text: str, opening: str) -> str:
    return text.strip().removeprefix(opening).strip()
