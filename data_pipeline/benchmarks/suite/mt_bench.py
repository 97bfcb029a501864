"""MT-Bench: 80 conversations of two questions, each answer rated from 1 to 10 by a judge.

Questions of mathematics, reasoning and coding come with a reference answer that the judge is shown. The score is the
mean of all ratings, over both turns.
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
    weighted_mean,
)
from data_pipeline.benchmarks.suite import columns
from data_pipeline.sampling.sampler import Sampling
from fusejax.common.cli import UserError

_QUESTIONS, _REFERENCES = "mt_bench", "mt_bench_references"
_FOLDER = "fastchat/llm_judge/data/mt_bench"
_REFERRED = ("math", "reasoning", "coding")
"""Categories whose judge sees a reference answer."""
_TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""By category; 0 for others."""
_TURNS = ("turn 1", "turn 2")
ATTEMPTS = 3
"""How often a judge is asked for a rating."""
AGAIN_TEMPERATURE = 0.7

# The prompts are FastChat's (lm-sys/FastChat, llm_judge/data/judge_prompts.jsonl, Apache-2.0), word for word:
# single-v1, single-math-v1, single-v1-multi-turn and single-math-v1-multi-turn.
_SYSTEM = "You are a helpful assistant."
_RATE = (
    "Be as objective as possible. After providing your explanation, you must rate the response on a scale of 1 to 10 "
    'by strictly following this format: "[[rating]]", for example: "Rating: [[5]]".\n\n'
)
_JUDGE = "Please act as an impartial judge and evaluate the quality of the response provided by an AI assistant to the "
_FACTORS = (
    "Your evaluation should consider factors such as the helpfulness, relevance, accuracy, depth, creativity, and "
    "level of detail of the response. "
)
_CORRECTNESS = (
    "Your evaluation should consider correctness and helpfulness. You will be given a reference answer and the "
    "assistant's answer. "
)
_EXPLAIN = "Begin your evaluation by providing a short explanation. "
_COMPARE = (
    "Begin your evaluation by comparing the assistant's answer with the reference answer. Identify and correct any "
    "mistakes. "
)
_FIRST = (
    f"[Instruction]\n{_JUDGE}user question displayed below. {_FACTORS}{_EXPLAIN}{_RATE}[Question]\n{{question}}\n\n"
)
_FIRST_REFERRED = (
    f"[Instruction]\n{_JUDGE}user question displayed below. {_CORRECTNESS}{_COMPARE}{_RATE}[Question]\n{{question}}\n\n"
    "[The Start of Reference Answer]\n{reference}\n[The End of Reference Answer]\n\n"
)
_FIRST_ANSWER = "[The Start of Assistant's Answer]\n{answer}\n[The End of Assistant's Answer]"
_SECOND_SYSTEM = (
    f"{_JUDGE}user question displayed below. {_FACTORS}You evaluation should focus on the assistant's answer to the "
    f"second user question. {_EXPLAIN}{_RATE}"
)
_SECOND_SYSTEM_REFERRED = (
    f"{_JUDGE}user question. {_CORRECTNESS}You evaluation should focus on the assistant's answer to the second "
    f"question. {_COMPARE}{_RATE}"
)
_SECOND_REFERENCE = (
    "<|The Start of Reference Answer|>\n\n### User:\n{questions[0]}\n\n### Reference answer:\n{references[0]}\n\n"
    "### User:\n{questions[1]}\n\n### Reference answer:\n{references[1]}\n\n<|The End of Reference Answer|>\n\n\n"
)
_SECOND = (
    "<|The Start of Assistant A's Conversation with User|>\n\n### User:\n{questions[0]}\n\n"
    "### Assistant A:\n{answers[0]}\n\n### User:\n{questions[1]}\n\n### Assistant A:\n{answers[1]}\n\n"
    "<|The End of Assistant A's Conversation with User|>"
)


class MTBench:
    name = "mt_bench"
    title = "MT-Bench"
    scale = 10.0
    published = "mt_bench"
    files: Mapping[str, DataFile] = {
        _QUESTIONS: DataFile("", bring=f"{_FOLDER}/question.jsonl of lm-sys/FastChat"),
        _REFERENCES: DataFile(
            "",
            bring="reference answers to the 30 questions of mathematics, reasoning and coding: "
            f"{_FOLDER}/reference_answer/gpt-4.jsonl of lm-sys/FastChat, or FuseEval's by gpt-4-0125-preview, with "
            "which FuseChat-3.0 was judged",
        ),
    }
    turns = 2

    def items(self, rows: Mapping[str, Sequence[Row]]) -> list[Item]:
        """Raises `UserError` where a field is missing, or the reference answer of a question that needs one."""
        references = {
            str(row.get("question_id")): _reference(row, place) for place, row in enumerate(rows[_REFERENCES])
        }
        items = []
        for place, row in enumerate(rows[_QUESTIONS]):
            if row.get("question_id") is None:
                raise UserError(f"{_QUESTIONS}: row {place + 1}: no question_id; fields are {', '.join(row)}")
            id_ = str(row["question_id"])
            category = columns.text(row, columns.at(_QUESTIONS, place), "category")
            fields: Row = {"turns": columns.texts(row, columns.at(_QUESTIONS, place), "turns", 2), "category": category}
            if category in _REFERRED:
                if id_ not in references:
                    raise UserError(f"{_REFERENCES}: no answer to question {id_}")
                fields["reference"] = references[id_]
            items.append(Item(id_, fields, text=fields["turns"][0]))
        return items

    def asked(self, item: Item, family: Family, profile: Profile) -> Asked:
        """As many tokens as FuseEval's vLLM backend, the one that writes the chat template: FastChat's has 1,024."""
        return Asked(Sampling(temperature=_TEMPERATURES.get(item.fields["category"], 0.0)), max_tokens=4096)

    def prompt(self, item: Item, family: Family, profile: Profile, earlier: tuple[str, ...]) -> Prompt:
        """Always the chat template: which of FastChat's a published number was made with is not published."""
        turns = item.fields["turns"]
        messages = []
        for question, answer in zip(turns, earlier, strict=False):
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        messages.append({"role": "user", "content": turns[len(earlier)]})
        return Prompt(messages=tuple(messages), bos_again=profile == "fusechat3" and family == "llama")

    def calls(self, answer: Answer) -> list[Call]:
        fields = answer.item.fields
        questions, references = fields["turns"], fields.get("reference")
        first = (_FIRST if references is None else _FIRST_REFERRED) + _FIRST_ANSWER
        second = _SECOND if references is None else _SECOND_REFERENCE + _SECOND
        known = {"questions": questions, "references": references, "answers": answer.texts}
        known |= {"question": questions[0], "reference": references and references[0], "answer": answer.texts[0]}
        systems = (_SYSTEM, _SECOND_SYSTEM if references is None else _SECOND_SYSTEM_REFERRED)
        return [
            Call(
                name,
                ({"role": "system", "content": system}, {"role": "user", "content": user.format(**known)}),
                max_tokens=2048,
            )
            for name, system, user in zip(_TURNS, systems, (first, second), strict=True)
        ]

    def again(self, call: Call, replies: Sequence[Reply]) -> Call | None:
        """The same, where no rating was found; warmer, since a judge at temperature 0 would only repeat itself."""
        if len(replies) >= ATTEMPTS or rating(replies[-1].text) is not None:
            return None
        return Call(call.name, call.messages, call.max_tokens, temperature=AGAIN_TEMPERATURE)

    def judged(self, answer: Answer, replies: Mapping[str, Sequence[Reply]]) -> Grade:
        """`score` is the mean of the turns that have a rating. Further columns: `turn_1` and `turn_2`."""
        ratings = {name: rating(replies[name][-1].text) for name in _TURNS}
        found = [each for each in ratings.values() if each is not None]
        missing = [name for name, each in ratings.items() if each is None]
        return Grade(
            sum(found) / len(found) if found else None,
            extracted=", ".join("none" if each is None else f"{each:g}" for each in ratings.values()),
            detail=f"unanswered: no rating of {' and '.join(missing)}" if missing else None,
            values={name.replace(" ", "_"): each for name, each in ratings.items()},
        )

    def score(self, rows: pl.DataFrame, weights: Float[np.ndarray, "N"]) -> float:
        """The mean of all ratings."""
        ratings = np.concatenate([_column(rows, name) for name in ("turn_1", "turn_2")])
        return weighted_mean(ratings, np.tile(weights, 2))

    def details(self, rows: pl.DataFrame, weights: Float[np.ndarray, "N"]) -> dict[str, float]:
        """The mean of each turn's ratings."""
        return {name.replace("_", " "): weighted_mean(_column(rows, name), weights) for name in ("turn_1", "turn_2")}


def rating(judgment: str) -> float | None:
    """The first rating in double brackets, else the first in single ones; None where it is not from 1 to 10.

    >>> rating("A [1] citation. Rating: [[7]]"), rating("Rating: [8.5]"), rating("[[ten]]"), rating("[[70]]")
    (7.0, 8.5, None, None)
    """
    found = re.search(r"\[\[(\d+\.?\d*)\]\]", judgment) or re.search(r"\[(\d+\.?\d*)\]", judgment)
    return float(found[1]) if found and 1 <= float(found[1]) <= 10 else None


def _reference(row: Row, place: int) -> list[str]:
    match row.get("choices"):
        case [{"turns": [str() as first, str() as second]}, *_]:
            return [first, second]
    raise UserError(f"{_REFERENCES}: row {place + 1}: choices is no list of answers with two turns")


def _column(rows: pl.DataFrame, name: str) -> Float[np.ndarray, "N"]:
    return rows[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
