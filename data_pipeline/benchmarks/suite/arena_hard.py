"""Arena-Hard v0.1: 500 hard requests from Chatbot Arena, answers compared with GPT-4-0314's by a judge, in both orders.

Each comparison is a game; one that is won clearly (`>>`) counts as three. Between two models alone, the Bradley-Terry
fit of the leaderboard has a closed form: (won + tied / 2) / games. Style control is left out: its coefficients come
from the games of all models of a leaderboard, whose judge is gone.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from jaxtyping import Float

from data_pipeline.benchmarks.benchmark import (
    Answer,
    Asked,
    Call,
    DataFile,
    Family,
    Grade,
    Item,
    Profile,
    Prompt,
    Reply,
    Row,
)
from data_pipeline.benchmarks.suite import columns
from data_pipeline.benchmarks.suite.raw_prompts import one_turn
from data_pipeline.sampling.sampler import Sampling
from fusejax.common.cli import UserError

_QUESTIONS, _BASELINE = "arena_hard", "arena_hard_baseline"
_FOLDER = "data/arena-hard-v0.1"
_GAMES = ("baseline first", "baseline second")
CLEAR = 3
"""Games that a clear win stands for."""

# Prompt and further request are Arena-Hard's (lmarena/arena-hard-auto 196f6b8, Apache-2.0), word for word.
_SYSTEM = (
    "Please act as an impartial judge and evaluate the quality of the responses provided by two AI assistants to the "
    "user prompt displayed below. You will be given assistant A's answer and assistant B's answer. Your job is to "
    "evaluate which assistant's answer is better.\n\n"
    "Begin your evaluation by generating your own answer to the prompt. You must provide your answers before judging "
    "any answers.\n\n"
    "When evaluating the assistants' answers, compare both assistants' answers with your answer. You must identify and "
    "correct any mistakes or inaccurate information.\n\n"
    "Then consider if the assistant's answers are helpful, relevant, and concise. Helpful means the answer correctly "
    "responds to the prompt or follows the instructions. Note when user prompt has any ambiguity or more than one "
    "interpretation, it is more helpful and appropriate to ask for clarifications or more information from the user "
    "than providing an answer based on assumptions. Relevant means all parts of the response closely connect or are "
    "appropriate to what is being asked. Concise means the response is clear and not verbose or excessive.\n\n"
    "Then consider the creativity and novelty of the assistant's answers when needed. Finally, identify any missing "
    "important information in the assistants' answers that would be beneficial to include when responding to the user "
    "prompt.\n\n"
    "After providing your explanation, you must output only one of the following choices as your final verdict with a "
    "label:\n\n"
    "1. Assistant A is significantly better: [[A>>B]]\n"
    "2. Assistant A is slightly better: [[A>B]]\n"
    "3. Tie, relatively the same: [[A=B]]\n"
    "4. Assistant B is slightly better: [[B>A]]\n"
    "5. Assistant B is significantly better: [[B>>A]]\n\n"
    'Example output: "My final verdict is tie: [[A=B]]".'
)
_USER = (
    "<|User Prompt|>\n{question}\n\n<|The Start of Assistant A's Answer|>\n{first}\n<|The End of Assistant A's Answer|>"
    "\n\n<|The Start of Assistant B's Answer|>\n{second}\n<|The End of Assistant B's Answer|>"
)
_GO_ON = "continue your judgment and finish by outputting a final verdict label"


class ArenaHard:
    name = "arena_hard"
    title = "Arena-Hard"
    scale = 100.0
    published = "arena_hard"
    files: Mapping[str, DataFile] = {
        _QUESTIONS: DataFile(
            "lmarena-ai/arena-hard-auto",
            file=f"{_FOLDER}/question.jsonl",
            bring=f"{_FOLDER}/question.jsonl of lmarena/arena-hard-auto",
        ),
        _BASELINE: DataFile(
            "lmarena-ai/arena-hard-auto",
            file=f"{_FOLDER}/model_answer/gpt-4-0314.jsonl",
            bring=f"the baseline's answers, {_FOLDER}/model_answer/gpt-4-0314.jsonl of lmarena/arena-hard-auto",
        ),
    }
    turns = 1

    def items(self, rows: Mapping[str, Sequence[Row]]) -> list[Item]:
        """Raises `UserError` where a field is missing, or the baseline's answer to a question."""
        answers = {}
        for place, row in enumerate(rows[_BASELINE]):
            answers[columns.text(row, columns.at(_BASELINE, place), "question_id")] = _answer(row, place)
        items = []
        for place, row in enumerate(rows[_QUESTIONS]):
            id_ = columns.text(row, columns.at(_QUESTIONS, place), "question_id")
            if id_ not in answers:
                raise UserError(f"{_BASELINE}: no answer to question {id_}")
            question = _question(row, place)
            items.append(Item(id_, {"question": question, "baseline": answers[id_]}, text=question))
        return items

    def asked(self, item: Item, family: Family, profile: Profile) -> Asked:
        return Asked(Sampling(temperature=0.0), max_tokens=4096)

    def prompt(self, item: Item, family: Family, profile: Profile, earlier: tuple[str, ...]) -> Prompt:
        return one_turn(item.fields["question"], family, profile)

    def calls(self, answer: Answer) -> list[Call]:
        question, baseline, ours = answer.item.fields["question"], answer.item.fields["baseline"], answer.texts[0]
        orders = zip(_GAMES, ((baseline, ours), (ours, baseline)), strict=True)
        return [
            Call(
                game,
                (
                    {"role": "system", "content": _SYSTEM},
                    {"role": "user", "content": _USER.format(question=question, first=first, second=second)},
                ),
                max_tokens=4096,
            )
            for game, (first, second) in orders
        ]

    def again(self, call: Call, replies: Sequence[Reply]) -> Call | None:
        """Once, where there was no verdict at all; two different ones are given up."""
        if len(replies) > 1 or verdicts(replies):
            return None
        more = ({"role": "assistant", "content": replies[-1].text}, {"role": "user", "content": _GO_ON})
        return Call(call.name, (*call.messages, *more), call.max_tokens)

    def judged(self, answer: Answer, replies: Mapping[str, Sequence[Reply]]) -> Grade:
        """`score` is the share of the question's games that was won. Further columns: `won` and `games`, a game as
        often as it counts; a game without a verdict counts as none."""
        won = games = 0.0
        said, missing = list[str](), list[str]()
        for game in _GAMES:
            found = verdicts(replies[game])
            outcome = points(found[0], ours="B" if game == _GAMES[0] else "A") if len(found) == 1 else None
            said.append(" and ".join(found) or "none")
            if outcome is None:
                missing.append(game)
            else:
                won, games = won + outcome[0], games + outcome[1]
        values = {"won": won, "games": games}
        extracted = ", ".join(said)
        detail = f"unanswered: no verdict with the {' and the '.join(missing)}" if missing else None
        return Grade(won / games if games else None, extracted, detail, values)

    def score(self, rows: pl.DataFrame, weights: Float[np.ndarray, "N"]) -> float:
        """The share of all games that was won, in percent."""
        games = float(weights @ rows["games"].to_numpy())
        return 100 * float(weights @ rows["won"].to_numpy()) / games if games else float("nan")


def verdicts(replies: Sequence[Reply]) -> list[str]:
    """The different verdicts in what a judge said.

    >>> verdicts([Reply("A is better: [[A>B]]. So: [[A>B]]", "stop")]), verdicts([Reply("[[A>B]] or [[A=B]]", "stop")])
    (['A>B'], ['A=B', 'A>B'])
    """
    return sorted({each for reply in replies for each in re.findall(r"\[\[([AB<>=]+)\]\]", reply.text)})


def points(verdict: str, ours: str) -> tuple[float, float] | None:
    """What a verdict gives the answer named `ours`, and for how many games it stands; None if it is none of the five.

    >>> points("A>>B", "A"), points("B>A", "A"), points("A=B", "B"), points("A<B", "B")
    ((3.0, 3.0), (0.0, 1.0), (0.5, 1.0), None)
    """
    if verdict == "A=B":
        return 0.5, 1.0
    if verdict not in ("A>B", "B>A", "A>>B", "B>>A"):
        return None
    count = float(CLEAR if ">>" in verdict else 1)
    return (count if verdict[0] == ours else 0.0), count


def _question(row: Row, place: int) -> str:
    match row.get("turns"):
        case [{"content": str() as content}]:
            return content
    raise UserError(f"{_QUESTIONS}: row {place + 1}: turns is no list of one turn with content")


def _answer(row: Row, place: int) -> str:
    """In the form of FastChat's answers."""
    match row.get("choices"):
        case [{"turns": [{"content": str() as content}, *_]}, *_]:
            return content
    raise UserError(f"{_BASELINE}: row {place + 1}: choices is no list of answers with turns with content")
