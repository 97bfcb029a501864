"""AlignBench v1.1: 683 Chinese questions of eight categories, each answer rated from 1 to 10 by a judge.

The judge sees a reference answer, "worth 8", and rates in the dimensions of the question's kind before it gives the
rating that counts (综合得分). The score is the mean of two means: of the two categories of reasoning, and of the six
of language.

AlignBench's repository (THUDM/AlignBench) has no licence, so neither its questions nor its judge's prompt is here. In
a checkout of it, this makes both files:

    cp data/data_v1.1_release.jsonl alignbench.jsonl
    python - > alignbench_judge.jsonl << END
    import ast, json
    code = ast.walk(ast.parse(open("judge.py").read()))
    named = {getattr(node.targets[0], "id", ""): node.value for node in code if isinstance(node, ast.Assign)}
    config = lambda name: json.load(open(f"config/{name}.json"))
    print(json.dumps({
        "prompt": ast.literal_eval(named["base_prompt"]),
        "dimension_set": config("dimension_set"),
        "definitions": config("multi-dimension"),
        "subcategories": config("subcategory_question_mapping"),
    }))
    END
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

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

_QUESTIONS, _JUDGE = "alignbench", "alignbench_judge"
REASONING = ("逻辑推理", "数学计算")
LANGUAGE = ("专业能力", "中文理解", "基本任务", "文本写作", "综合问答", "角色扮演")
_WARM = ("文本写作", "角色扮演", "综合问答")
"""Categories whose answers are sampled at 0.7; the others at 0.1."""
OVERALL = "综合得分"
ATTEMPTS = 3
"""How often a judge is asked for a rating."""
AGAIN_TEMPERATURE = 0.7


class AlignBench:
    name = "alignbench"
    title = "AlignBench v1.1"
    scale = 10.0
    published = "alignbench"
    files: Mapping[str, DataFile] = {
        _QUESTIONS: DataFile("", bring="data/data_v1.1_release.jsonl of THUDM/AlignBench, which has no licence"),
        _JUDGE: DataFile(
            "",
            bring="one row with prompt, dimension_set, definitions and subcategories, of judge.py and config/ of "
            "THUDM/AlignBench, which has no licence: data_pipeline/benchmarks/suite/alignbench.py says how",
        ),
    }
    turns = 1

    def items(self, rows: Mapping[str, Sequence[Row]]) -> list[Item]:
        """Raises `UserError` where a field, a category or what the judge needs is missing."""
        if len(rows[_JUDGE]) != 1:
            raise UserError(f"{_JUDGE}: {len(rows[_JUDGE])} rows, not one")
        judge = rows[_JUDGE][0]
        items = []
        for place, row in enumerate(rows[_QUESTIONS]):
            names = ("category", "subcategory", "question", "reference")
            fields = {name: columns.text(row, columns.at(_QUESTIONS, place), name) for name in names}
            if fields["category"] not in (*REASONING, *LANGUAGE):
                raise UserError(f"{_QUESTIONS}: row {place + 1}: no category {fields['category']!r}")
            if row.get("question_id") is None:
                raise UserError(f"{_QUESTIONS}: row {place + 1}: no question_id; fields are {', '.join(row)}")
            asked = {**fields, "template": columns.text(judge, columns.at(_JUDGE, 0), "prompt")}
            asked["dimensions"] = _dimensions(judge, fields["subcategory"])
            items.append(Item(str(row["question_id"]), asked, stratum=fields["category"], text=fields["question"]))
        if items:
            _request(items[0].fields, "")
        return items

    def asked(self, item: Item, family: Family, profile: Profile) -> Asked:
        return Asked(Sampling(temperature=0.7 if item.fields["category"] in _WARM else 0.1), max_tokens=4096)

    def prompt(self, item: Item, family: Family, profile: Profile, earlier: tuple[str, ...]) -> Prompt:
        turn = {"role": "user", "content": item.fields["question"]}
        return Prompt(messages=(turn,), bos_again=profile == "fusechat3" and family == "llama")

    def calls(self, answer: Answer) -> list[Call]:
        turn = {"role": "user", "content": _request(answer.item.fields, answer.texts[0])}
        return [Call("rating", (turn,), max_tokens=4096)]

    def again(self, call: Call, replies: Sequence[Reply]) -> Call | None:
        """The same, where no rating was found; warmer, since a judge at temperature 0 would only repeat itself."""
        if len(replies) >= ATTEMPTS or rating(replies[-1].text) is not None:
            return None
        return Call(call.name, call.messages, call.max_tokens, temperature=AGAIN_TEMPERATURE)

    def judged(self, answer: Answer, replies: Mapping[str, Sequence[Reply]]) -> Grade:
        found = rating(replies["rating"][-1].text)
        if found is None:
            return Grade(None, detail="unanswered: no rating")
        return Grade(found, extracted=f"{found:g}")

    def score(self, rows: pl.DataFrame, weights: Float[np.ndarray, "N"]) -> float:
        """The mean of both groups of categories; of one where the other has no grades."""
        means = self.details(rows, weights)
        groups = [[means[name] for name in group if name in means] for group in (REASONING, LANGUAGE)]
        found = [sum(group) / len(group) for group in groups if group]
        return sum(found) / len(found) if found else float("nan")

    def details(self, rows: pl.DataFrame, weights: Float[np.ndarray, "N"]) -> dict[str, float]:
        """The mean of each category that has grades which count."""
        scores = rows["score"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        strata = rows["stratum"].to_numpy()
        means = {name: weighted_mean(scores[strata == name], weights[strata == name]) for name in REASONING + LANGUAGE}
        return {name: mean for name, mean in means.items() if not np.isnan(mean)}


def rating(judgment: str) -> float | None:
    """The overall rating: in the last braces on one line, else the first anywhere; None where it is not from 1 to 10.

    >>> rating("正确。{'事实正确性': 9, '综合得分': 7}"), rating("'综合得分': 6.5"), rating("{'综合得分': 70}")
    (7.0, 6.5, None)
    """
    found = None
    if braces := re.findall(r"\{([^{\n]*?)\}", judgment):
        found = dict(re.findall(r"'(.*?)': (\d+)", braces[-1])).get(OVERALL)
    if found is None and (anywhere := re.search(rf"'{OVERALL}': (\d+(\.\d{{1,2}})?)", judgment)):
        found = anywhere[1]
    return float(found) if found is not None and 1 <= float(found) <= 10 else None


def _dimensions(judge: Row, subcategory: str) -> str:
    """The numbered dimensions, with their definitions, of a subcategory's kind of question."""
    lists, definitions, kinds = (judge.get(name) for name in ("dimension_set", "definitions", "subcategories"))
    lines = []
    for number, name in enumerate(_at(lists, _at(kinds, subcategory, "subcategories"), "dimension_set"), 1):
        lines.append(f"{number}. {name}: {_at(definitions, name, 'definitions')}\n")
    return "".join(lines)


def _at(table: Any, key: str, name: str) -> Any:
    if not isinstance(table, dict) or not table.get(key):
        raise UserError(f"{_JUDGE}: {name} has no {key!r}")
    return table[key]


def _request(fields: Row, answer: str) -> str:
    known = {name: fields[name] for name in ("category", "dimensions", "question", "reference")}
    try:
        request = fields["template"].format(**known, answer=answer)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{_JUDGE}: prompt is no template of judge.py: {error}") from None
    if fields["question"] not in request or fields["reference"] not in request:
        raise UserError(f"{_JUDGE}: prompt lacks {{question}} or {{reference}}")
    return request
