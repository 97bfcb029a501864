"""Code: problems with tests, Python statements that run after the program."""

import re
from typing import Any

from data_pipeline.prompts.adapters import leetcode
from data_pipeline.prompts.adapters.base import Adapter, Rejected, Row, text

_SHOWN_TESTS = re.compile(
    r"should pass the following (?:assertions?|test cases?|tests?):?\s*```(?:python)?\n(.*?)```", re.DOTALL
)


def _self_oss_instruct(row: Row) -> dict[str, Any]:
    prompt = text(row, "instruction")
    match = _SHOWN_TESTS.search(prompt)
    if match is None:
        raise Rejected("no_tests")
    if "assert" not in match[1]:
        raise Rejected("tests_check_nothing")
    return {"id": row.get("sha1"), "prompt": prompt, "tests": [match[1].strip()]}


SELF_OSS_INSTRUCT = Adapter(("sha1", "instruction"), _self_oss_instruct)
"""bigcode/self-oss-instruct-sc2-exec-filter-50k: {fingerprint, sha1, seed, response, concepts, prompt, instruction,
id}.

About a quarter of the instructions end in tests to pass, as a fenced block. Tests at the end of some responses are
not used: they may use names that the instruction does not give. Schema: the data set's card; how the tests came into
the instructions: `sanitize_data.py` of bigcode-project/starcoder2-self-align.
"""

LEETCODE = Adapter(("slug", "content", "python"), leetcode.read)
"""greengerong/leetcode: {id, slug, title, difficulty, content, java, c++, python, javascript}; see `leetcode`."""


def _leetcode_dataset(row: Row) -> dict[str, Any]:
    test, entry_point = row.get("test"), row.get("entry_point")
    if not (isinstance(test, str) and test.strip() and isinstance(entry_point, str)):
        raise Rejected("no_tests")
    setting = row.get("prompt")
    tests = [*([setting.strip()] if isinstance(setting, str) and setting.strip() else []), test.strip()]
    return {"id": row.get("task_id"), "prompt": text(row, "query"), "tests": [*tests, f"check({entry_point})"]}


LEETCODE_DATASET = Adapter(("task_id", "prompt", "query", "entry_point", "test"), _leetcode_dataset)
"""newfacade/LeetCodeDataset: {task_id, prompt, query, entry_point, test, completion, response, ...}.

`query` is the question; `prompt` is the code before the program (imports, helpers); `test` defines `check`, which is
called with the entry point. Schema: the data set's card.
"""
