"""The programmatic reward: in the range of ArmoRM, better replies score higher, margins mean something."""

import pytest

from quickstart.reward import score
from quickstart.tasks import DOMAINS, Domain, Task, draw


def reward(task: Task, text: str) -> float:
    return score(task.record("x"), text)[0]


@pytest.mark.parametrize("domain", DOMAINS)
def test_references_score_high_and_garbage_scores_low(domain: Domain) -> None:
    for task in draw(domain, "train", 50, "0"):
        assert 0.15 <= reward(task, task.reference) <= 0.2
        for text in ("", "x", "\\boxed{", "```python\ndef f(:\n```", "{}" * 500, "\x00"):
            assert 0.05 <= reward(task, text) < 0.1


@pytest.mark.parametrize("domain", ["instruction", "chinese", "math"])
def test_one_mistake_is_a_margin_within_the_recipes_bounds(domain: Domain) -> None:
    for task in draw(domain, "train", 100, "0"):
        for skill in task.skills:
            margin = reward(task, task.reference) - reward(task, task.reply({skill}))
            assert 0.01 <= round(margin, 9) <= 0.1


@pytest.mark.parametrize("domain", ["instruction", "chinese"])
def test_facts_get_a_verdict(domain: Domain) -> None:
    [task] = draw(domain, "train", 1, "0")
    assert score(task.record("x"), f" {task.reference}\n")[1] == "correct"
    assert score(task.record("x"), task.reply({task.skills[0]}))[1] == "wrong"
    assert score(task.record("x"), task.reference + " And more.")[1] == "wrong"


@pytest.mark.parametrize("domain", ["math", "code"])
def test_verdicts_on_mathematics_and_code_are_left_to_the_verifiers(domain: Domain) -> None:
    [task] = draw(domain, "train", 1, "0")
    assert score(task.record("x"), task.reference)[1] is None


def test_a_broken_layout_costs_a_little() -> None:
    task = next(task for task in draw("instruction", "train", 50, "0") if task.prompt.endswith("with a comma."))
    broken = task.reference.replace(", ", " ")
    assert 0 < reward(task, task.reference) - reward(task, broken) < 0.04


def test_true_steps_count_even_where_the_result_is_wrong() -> None:
    task = draw("math", "train", 1, "0")[0]
    first_step_true = task.reply({task.skills[1]})
    no_step_true = "1 + 1 = 3, 3 - 1 = 1. \\boxed{99}"
    assert reward(task, no_step_true) < reward(task, first_step_true) < reward(task, task.reference)


def test_the_reward_for_code_does_not_see_the_tests() -> None:
    [task] = draw("code", "train", 1, "0")
    assert reward(task, task.reply(set(task.skills))) == pytest.approx(reward(task, task.reference), abs=0.021)
    other_name = task.reference.replace("def ", "def other_")
    assert reward(task, other_name) < reward(task, task.reference)


def test_unknown_domains_are_refused() -> None:
    with pytest.raises(ValueError, match="poetry"):
        score({"domain": "poetry", "messages": [], "answer": None}, "x")
