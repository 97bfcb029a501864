"""Adapters on rows as the data sets' cards show them: what becomes a prompt, what is left out and why."""

from typing import Any

import pytest

from data_pipeline.domains import VerifierLimits
from data_pipeline.prompts.adapters import ADAPTERS, Rejected
from data_pipeline.prompts.adapters.topics import refuse_code_and_math
from data_pipeline.scoring.code.scorer import CodeScorer
from data_pipeline.scoring.scorer import Item

TWO_SUM = r"""Given an array of integers `nums` and an integer `target`, return _indices of the two numbers such that
they add up to `target`_.

You can return the answer in any order.

**Example 1:**

**Input:** nums = \[2,7,11,15\], target = 9
**Output:** \[0,1\]
**Explanation:** Because nums\[0\] + nums\[1\] == 9, we return \[0, 1\].

**Example 2:**

**Input:** nums = \[3,2,4\], target = 6
**Output:** \[1,2\]

**Constraints:**

*   `2 <= nums.length <= 104`
"""
TWO_SUM_PYTHON = """
    ```python
def twoSum(nums, target):
    seen = {}
    for i, number in enumerate(nums):
        if target - number in seen:
            return [seen[target - number], i]
        seen[number] = i
```

    The algorithm uses a hash map.
"""


def adapt(name: str, **row: Any) -> dict[str, Any]:
    return ADAPTERS[name].read(row)


def reason(name: str, **row: Any) -> str:
    with pytest.raises(Rejected) as error:
        adapt(name, **row)
    return error.value.reason


def leetcode(content: str, python: str = TWO_SUM_PYTHON) -> dict[str, Any]:
    return {
        "id": 1, "slug": "two-sum", "title": "Two Sum", "difficulty": "Easy", "content": content, "python": python,
        "java": "", "c++": "", "javascript": "",
    }  # fmt: skip


def example(given: str, output: str) -> str:
    return f"Do it.\n\n**Example 1:**\n\n**Input:** {given}\n**Output:** {output}\n\n**Constraints:**\n"


def test_ultrafeedback_leaves_out_code_and_mathematics():
    row = {"source": "sharegpt", "models": ["gpt-4"], "completions": [], "correct_answers": ["None"]}
    found = adapt("openbmb/UltraFeedback", instruction=" Who painted the Night Watch?", **row)
    assert found == {"prompt": "Who painted the Night Watch?"}
    assert reason("openbmb/UltraFeedback", instruction="Write a Python function that adds.", **row) == "topic_code"
    assert reason("openbmb/UltraFeedback", instruction="Solve the equation x + 3 = 5.", **row) == "topic_math"
    assert reason("openbmb/UltraFeedback", instruction=None, **row) == "no_prompt"


def test_magpie_goes_by_its_labels():
    name = "Magpie-Align/Magpie-Pro-DPO-100K-v0.1"
    row = {"uuid": "7d0a", "instruction": "Explain the matrix in the film.", "difficulty": "easy"}
    assert adapt(name, task_category="Information seeking", **row) == {"id": "7d0a", "prompt": row["instruction"]}
    assert reason(name, task_category="Coding & Debugging", **row) == "topic_code"
    assert reason(name, task_category="Math", **row) == "topic_math"


def test_helpsteer2_has_turns():
    row = {"response": "...", "helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 1}
    prompt = "Name a river.\n<extra_id_1>Assistant\nThe Rhine.\n\nIt is long.\n<extra_id_1>User\nAnother one?"
    assert adapt("nvidia/HelpSteer2", prompt=prompt, **row) == {
        "messages": [
            {"role": "user", "content": "Name a river."},
            {"role": "assistant", "content": "The Rhine.\n\nIt is long."},
            {"role": "user", "content": "Another one?"},
        ]
    }
    assert adapt("nvidia/HelpSteer2", prompt="Hi", **row)["messages"] == [{"role": "user", "content": "Hi"}]
    assert reason("nvidia/HelpSteer2", prompt="c#", **row) == "topic_code"
    assert reason("nvidia/HelpSteer2", prompt=prompt + " And in SQL?", **row) == "topic_code"


def test_mathematics_has_answers():
    row = {"problem": "What is $1+1$?", "generated_solution": "\\boxed{2}", "problem_source": "augmented_math"}
    found = adapt("nvidia/OpenMathInstruct-2", expected_answer="2", **row)
    assert found == {"prompt": "What is $1+1$?", "answer": "2"}
    found = adapt("openai/gsm8k", question="How many?", answer="500+700 = <<500+700=1200>>1,200\n#### 1,200")
    assert found == {"prompt": "How many?", "answer": "1200"}
    assert reason("openai/gsm8k", question="How many?", answer="1200") == "no_answer"


def test_leetcode_examples_become_tests():
    found = adapt("greengerong/leetcode", **leetcode(TWO_SUM))
    assert found["id"] == "two-sum"
    assert found["tests"] == [
        "assert sorted(twoSum([2, 7, 11, 15], 9)) == [0, 1]",
        "assert sorted(twoSum([3, 2, 4], 6)) == [1, 2]",
    ]
    assert "nums = [2,7,11,15], target = 9" in found["prompt"]
    assert found["prompt"].endswith("```python\ndef twoSum(nums, target):\n```")


@pytest.mark.parametrize(
    ("given", "output", "test"),
    [
        ('nums = "a, b", target = "c"', '"x y"', "assert twoSum('a, b', 'c') == 'x y'"),
        ("target = 2, nums = -1", "true", "assert twoSum(-1, 2) == True"),
        ("a = [1,null], b = [[true]]", "null", "assert twoSum([1, None], [[True]]) == None"),
        ("nums = 2.0, target = 10", "1024.00000", "assert abs(twoSum(2.0, 10) - 1024.0) < 1e-5"),
    ],
)
def test_leetcode_values(given: str, output: str, test: str):
    assert adapt("greengerong/leetcode", **leetcode(example(given, output)))["tests"] == [test]


@pytest.mark.parametrize(
    ("content", "python", "why"),
    [
        (example("head = [1,2]", "[2,1]") + "Reverse the linked list.", TWO_SUM_PYTHON, "tests_need_nodes"),
        (example("nums = [1], target = 2", "[1]") + "Do it **in-place**.", TWO_SUM_PYTHON, "changes_in_place"),
        (TWO_SUM + "If there are multiple valid answers, return **any of them**.", TWO_SUM_PYTHON, "many_answers"),
        (example("nums = [1], target = 2", "[1,null]") + "In any order.", TWO_SUM_PYTHON, "many_answers"),
        (example("nums = [1]", "[1]"), TWO_SUM_PYTHON, "no_reference_function"),
        (example("nums = [1], target = 2", "5, nums = [0,1,_,_]"), TWO_SUM_PYTHON, "no_tests"),
        ("A statement without examples.", TWO_SUM_PYTHON, "no_tests"),
        (TWO_SUM, "```python\nclass LRUCache:\n    pass\n```", "no_reference_function"),
        (TWO_SUM, "no program", "no_reference_function"),
    ],
)
def test_leetcode_leaves_out_what_equality_cannot_judge(content: str, python: str, why: str):
    assert reason("greengerong/leetcode", **leetcode(content, python)) == why


@pytest.mark.parametrize(
    ("python", "header"),
    [
        ("class Solution:\n    def _help(self): ...\n    def twoSum(self, nums, target): ...", "twoSum(nums, target)"),
        ("def two_sum(target, nums): ...\ndef helper(a, b): ...\ndef third(a): ...", "two_sum(target, nums)"),
        ("def two_sum(a, b): ...", "two_sum(a, b)"),
    ],
)
def test_leetcode_finds_the_function_that_takes_the_examples_inputs(python: str, header: str):
    found = adapt("greengerong/leetcode", **leetcode(TWO_SUM, f"```python\n{python}\n```"))
    assert f"def {header}:" in found["prompt"]
    arguments = "6, [3, 2, 4]" if "target, nums" in header else "[3, 2, 4], 6"
    assert found["tests"][1] == f"assert sorted({header.partition('(')[0]}({arguments})) == [1, 2]"


def test_leetcode_examples_on_one_line():
    content = r"Do it.\n\n**Example 1:** **Input:** nums = \[1\], target = 6 **Output:** 1\n\n".replace("\\n", "\n")
    assert reason("greengerong/leetcode", **leetcode(content)) == "no_tests"
    content = content.replace("**Input", "\n\n**Input").replace("1\n\n", "1 **Explanation:** So it is.\n")
    assert adapt("greengerong/leetcode", **leetcode(content))["tests"] == ["assert twoSum([1], 6) == 1"]


def test_self_oss_instruct_takes_the_tests_that_the_instruction_shows():
    name = "bigcode/self-oss-instruct-sc2-exec-filter-50k"
    row = {"fingerprint": None, "sha1": "0a5c", "seed": "def f(): ...", "response": "...", "concepts": [], "id": 3}
    tests = "assert add(1, 2) == 3\nassert add(0, 0) == 0"
    shown = f"Write `add`.\n\nYour code should pass the following assertions:\n```python\n{tests}\n```"
    assert adapt(name, instruction=shown, **row) == {"id": "0a5c", "prompt": shown, "tests": [tests]}
    assert reason(name, instruction="Write `add` and test it.", **row) == "no_tests"
    assert reason(name, instruction=shown.replace("assert ", ""), **row) == "tests_check_nothing"


def test_the_tests_judge_programs():
    """The reference passes the tests that its own statement gave, and another program does not."""
    prompt = adapt("greengerong/leetcode", **leetcode(TWO_SUM))
    answers = [TWO_SUM_PYTHON.replace("    ```", "```"), "```python\ndef twoSum(nums, target):\n    return [0, 1]\n```"]
    scores = CodeScorer(VerifierLimits(), workers=1).score([Item(prompt=prompt, text=text) for text in answers])
    assert [score.verdict for score in scores] == ["correct", "wrong"]


def test_leetcode_dataset_calls_check():
    row = {"task_id": "two-sum", "prompt": "import math\n", "query": "Do it.", "entry_point": "Solution().twoSum"}
    test = "def check(candidate):\n    assert candidate(1) == 1"
    found = adapt("newfacade/LeetCodeDataset", test=test, **row)
    assert found["tests"] == ["import math", test, "check(Solution().twoSum)"]
    assert (found["id"], found["prompt"]) == ("two-sum", "Do it.")
    assert reason("newfacade/LeetCodeDataset", test="", **row) == "no_tests"


def test_alpaca_gpt4_zh():
    name = "llamafactory/alpaca_gpt4_zh"
    assert adapt(name, instruction="翻译这句话。", input="Good day", output="...") == {
        "prompt": "翻译这句话。\n\nGood day"
    }
    assert reason(name, instruction="Translate.", input="", output="") == "not_chinese"
    assert reason(name, instruction="用Python编写一个程序。", input="", output="") == "topic_code"
    assert reason(name, instruction="解下列方程。", input="x + 3 = 5", output="") == "topic_math"


def test_magpie_qwen2_chinese():
    name = "Magpie-Align/Magpie-Qwen2-Pro-200K-Chinese"
    row = {"uuid": "1", "instruction": "介绍一下西安。", "task_category": "Information seeking", "language": "ZH"}
    assert adapt(name, input_quality="good", **row) == {"id": "1", "prompt": "介绍一下西安。"}
    assert reason(name, input_quality="average", **row) == "low_quality"
    assert reason(name, input_quality="good", **(row | {"task_category": "Math"})) == "topic_math"
    assert reason(name, input_quality="good", **(row | {"instruction": "Hello?"})) == "not_chinese"


@pytest.mark.parametrize(
    "text",
    [
        "Write a script for a short film about jazz.",
        "Is it open 24/7, and from 2020-2024?",
        "Recommend books in the style of 1984 and Brave New World.",
        "Summarize: revenue grew 5% to $20 and costs fell to $12 in 2023.",
        "What is the code of conduct?",
        "写一首关于春天的诗。",
        "中国有多少个民族?",
    ],
)
def test_other_topics_stay(text: str):
    refuse_code_and_math(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("```\nx\n```", "topic_code"),
        ("How do I compare strings in Java?", "topic_code"),
        ("What does `SELECT a FROM b WHERE c` do", "topic_code"),
        ("请编写一个排序函数", "topic_code"),
        ("Tom has 3 apples and eats 2. How many are left?", "topic_math"),
        ("Evaluate the integral of sin.", "topic_math"),
        ("Find $a$ if $a^2 = 4$.", "topic_math"),
        ("What is 12 * 7?", "topic_math"),
        ("求半径为3的圆的面积", "topic_math"),
        ("小明有5个苹果,又买了3个,一共有多少个?", "topic_math"),
    ],
)
def test_code_and_mathematics_are_told(text: str, why: str):
    with pytest.raises(Rejected, match=why):
        refuse_code_and_math(text)
