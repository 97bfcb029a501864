"""What the multiple-choice benchmarks have in common: a question with up to ten options, a letter for an answer.

The prompt is FuseChat-3.0's (`SLIT-AI/FuseChat-3.0` 5af2bad, FuseEval): reasoning first, asked once, greedily. How the
letter is read from an answer depends on the profile:

- `fusechat3`: the first `answer is X`, else the first `Answer: X`, else the last capital letter that stands alone, be
  it a word ("I", "A"); where there is none, the option that a fixed seed guesses, always the same.
- `clean`: the last statement of a letter that the question has, also written `[D]`, `**D**` or `\\boxed{D}`; an answer
  that says nothing but a letter, or ends in a line that does. Where there is none, it is wrong and counted.
"""

import ast
import json
import random
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from data_pipeline.benchmarks.benchmark import (
    Answer,
    Asked,
    DataFile,
    Family,
    Grade,
    Item,
    Profile,
    Prompt,
    Row,
    Tools,
    weighted_mean,
)
from data_pipeline.benchmarks.suite import columns
from data_pipeline.benchmarks.suite.raw_prompts import raw
from data_pipeline.sampling.sampler import Sampling
from fusejax.common.cli import UserError

LETTERS = string.ascii_uppercase[:10]
BEFORE = (
    "Please read the following multiple-choice questions and provide the most likely correct answer based on the "
    "options given.\nQuestion:\n"
)
BEHIND = (
    "- For simple problems:\nDirectly provide the answer with minimal explanation.\n\n"
    "- For complex problems:\nUse this step-by-step format:\n"
    "## Step 1: [Concise description]\n[Brief explanation]\n"
    "## Step 2: [Concise description]\n[Brief explanation]\n\n"
    "Regardless of the approach, always conclude with:\nThe best answer is [the_answer_letter].\n"
    "where the [the_answer_letter] is the correct letter choice.\n\n"
    "Answer: Let's think step by step."
)

_FIRST = re.compile(r"answer is \(?([A-J])\)?")
_THEN = re.compile(r"[aA]nswer:(?=\s*([A-J]))")
_ALONE = re.compile(r"\b[A-J]\b")

_AROUND = r"(?:[\s*_`\"'“”‘’$(（<\[{]|\\[(\[]|\\(?:boxed|text|textbf|mathbf|mathrm)\b){0,12}"
_STATEMENT = re.compile(
    r"(?:\b(?:answer|choice|option)\b[\s*_]{0,4}(?:(?:is|would be|should be|must be)\b[\s*_]{0,4}:?|:)|\\boxed\{)"
    rf"(?P<around>{_AROUND})(?:(?:the\s+)?(?:option|choice|letter)\s+{_AROUND})?(?P<letter>[A-J])(?![\w'’-])"
    r"|(?<![\w'’-])(?P<subject>[A-J])[\s*_`\"')\]}$\\.]{0,4}\sis (?:the|our) (?:\w+ ){0,2}(?:answer|choice|option)\b",
    re.IGNORECASE,
)
_ANOTHER = re.compile(
    rf"[\s*_`\"')）>\]}}$\\]{{0,6}}(?:/|&|,?\s*(?:or|and)\b){_AROUND}(?:(?:option|choice)\s+)?[A-J](?![\w'’])"
    r"(?!\W{0,3}\s(?:is|are|was|were|would|does|do|can|cannot)\b)"
)
_A_WORD = re.compile(r" (?!(?:because|since|as|for|which|with|due|based|given|by|if|in|from|and|or)\b)[a-z]")
_LONE_LINE = re.compile(rf"{_AROUND}([A-J])[\s*_`\"'”’$)）>\]}}\\.:]*")
_ONE_LINE = re.compile(rf"{_AROUND}([A-J])[*_]*[).\]:][^\n]*")


class Choices:
    """Base of the multiple-choice benchmarks; see `benchmark.Graded`."""

    name: str
    title: str
    files: Mapping[str, DataFile]
    published = ""
    scale = 100.0
    turns = 1

    def items(self, rows: Mapping[str, Sequence[Row]]) -> list[Item]:
        taken: set[str] = set()
        return [
            self.item(row, where, columns.identity(row, number, taken, where, "question_id", "Record ID"))
            for where, number, row in columns.numbered(self.name, self.files, rows)
            if self.wanted(row, where)
        ]

    def wanted(self, row: Row, where: str) -> bool:
        """Whether the row is one of the benchmark's."""
        return True

    def item(self, row: Row, where: str, identity: str) -> Item:
        question = columns.text(row, where, "question", "Question")
        options, right = _options(row, where)
        fields = {"question": question, "options": options, "right": right}
        return Item(id=identity, fields=fields, text=question)

    def order(self, item: Item, profile: Profile) -> Sequence[int]:
        """In which order the options are shown."""
        return range(len(item.fields["options"]))

    def asked(self, item: Item, family: Family, profile: Profile) -> Asked:
        return Asked(Sampling(temperature=0.0, stop=("Question:",)), max_tokens=2048)

    def prompt(self, item: Item, family: Family, profile: Profile, earlier: tuple[str, ...]) -> Prompt:
        """In the profile fusechat3, Qwen's template has lost its default system turn, and the others' BOS comes twice,
        Gemma's too."""
        options = [item.fields["options"][index] for index in self.order(item, profile)]
        shown = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, options, strict=False))
        turn = {"role": "user", "content": f"{BEFORE}{item.fields['question']}\nOptions:\n{shown}{BEHIND}"}
        if profile == "clean":
            return Prompt(messages=(turn,))
        if family == "qwen":
            return raw(family, [turn])
        return Prompt(messages=(turn,), bos_again=family in ("llama", "gemma"))

    def grade(self, answers: Sequence[Answer], profile: Profile, tools: Tools) -> list[Grade]:
        return [self._grade(answer, profile) for answer in answers]

    def _grade(self, answer: Answer, profile: Profile) -> Grade:
        """`with_guess`: the score if the fixed guess stood where nothing was answered."""
        order = self.order(answer.item, profile)
        right = LETTERS[list(order).index(answer.item.fields["right"])]
        found = (last_stated if profile == "clean" else first_or_any)(answer.texts[-1], len(order))
        guess = guessed(len(order))
        with_guess = float((found or guess) == right)
        if found is not None:
            return Grade(with_guess, found, values={"with_guess": with_guess})
        score = with_guess if profile == "fusechat3" else 0.0
        return Grade(score, None, f"unanswered: the guess would be {guess}", values={"with_guess": with_guess})

    def score(self, rows: pl.DataFrame, weights: Float[np.ndarray, "N"]) -> float:
        """Of all questions together, whatever their subjects."""
        return self.scale * weighted_mean(rows["score"].to_numpy(), weights)


def first_or_any(text: str, options: int) -> str | None:
    """The letter that FuseChat-3.0's scripts find, which may be none of the question's.

    >>> first_or_any("The answer is (B). No, the answer is (C).", 4), first_or_any("I think it is [D], a gas.", 4)
    ('B', 'D')
    >>> first_or_any("It is [D], I think.", 4)
    'I'
    """
    # Theirs are the same but for a `.*` that makes the second the last of its line, and for a lookahead that no other
    # follows the third. Both would take a time that is quadratic in the text's length.
    if match := _FIRST.search(text):
        return match[1]
    found = list(_THEN.finditer(text))
    if found:
        end = text.find("\n", found[0].start())
        return [match[1] for match in found if end < 0 or match.start() < end][-1]
    return next(reversed(_ALONE.findall(text)), None)


def guessed(options: int) -> str:
    """What `random.seed(12345)` before each guess makes of it: never another option.

    >>> [guessed(count) for count in (3, 4, 7, 8, 10)]
    ['B', 'D', 'D', 'G', 'G']
    """
    return LETTERS[random.Random(12345).randint(0, options - 1)]


def last_stated(text: str, options: int) -> str | None:
    """The letter that the text states last, if it is one of the question's; None if it states none, or several at once.

    >>> last_stated("The answer is (B). No: the best answer is **[C]**.", 4), last_stated("I think it is [D].", 4)
    ('C', None)
    """
    letters = LETTERS[:options]
    stated: str | None = None
    said = False
    for match in _STATEMENT.finditer(text):
        letter = match["letter"] or match["subject"]
        bare = not (match["around"] or "").strip()
        if letter not in letters or (match["letter"] and bare and letter in "AI" and _A_WORD.match(text, match.end())):
            continue
        several = match["letter"] is not None and _ANOTHER.match(text, match.end())
        stated, said = None if several else letter, True
    if said:
        return stated
    lines = text.strip().splitlines() or [""]
    found = _LONE_LINE.fullmatch(lines[-1]) or (_ONE_LINE.fullmatch(lines[0]) if len(lines) == 1 else None)
    return found[1] if found and found[1] in letters else None


def _options(row: Row, where: str) -> tuple[list[str], int]:
    """The options without those that are "N/A", and which of them is right."""
    options = row.get("options") if row.get("options") is not None else row.get("choices")
    if isinstance(options, str):
        options = _listed(options)
    if not isinstance(options, list | tuple):
        raise UserError(f"{where}: no list in options or choices; its columns are {', '.join(row) or 'none'}")
    answer = columns.text(row, where, "answer").strip()
    right = int(answer) if answer.isdecimal() else LETTERS.find(answer) if len(answer) == 1 else -1
    if not 0 <= right < len(options):
        raise UserError(f"{where}: the answer {answer} is none of {len(options)} options")
    kept = [index for index, option in enumerate(options) if option != "N/A"]
    if right not in kept or not 2 <= len(kept) <= len(LETTERS):
        raise UserError(f"{where}: {len(kept)} options that are not N/A, with answer {answer}")
    return [str(options[index]) for index in kept], kept.index(right)


def _listed(text: str) -> Any:
    """A list that a CSV file has as text, in JSON or Python."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None
