"""Mathematics: problems with gold answers."""

from typing import Any

from data_pipeline.prompts.adapters.base import Adapter, Rejected, Row, text


def _openmathinstruct2(row: Row) -> dict[str, Any]:
    return {"prompt": text(row, "problem"), "answer": row.get("expected_answer")}


OPENMATHINSTRUCT2 = Adapter(("problem", "expected_answer"), _openmathinstruct2)
"""nvidia/OpenMathInstruct-2: {problem, generated_solution, expected_answer, problem_source}, many rows per problem.

For augmented problems the expected answer is that of the majority. Schema: the data set's card.
"""


def _gsm8k(row: Row) -> dict[str, Any]:
    _, marker, answer = str(row.get("answer")).rpartition("####")
    if not marker:
        raise Rejected("no_answer", "no '####'")
    return {"prompt": text(row, "question"), "answer": answer.strip().replace(",", "")}


GSM8K = Adapter(("question", "answer"), _gsm8k)
"""openai/gsm8k: {question, answer}, the answer a solution that ends in `#### N`. Schema: the data set's card."""
