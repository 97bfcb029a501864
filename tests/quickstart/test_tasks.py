"""The generators of tasks: right replies are right, misconceptions are wrong, held-out combinations are new."""

import pytest

from quickstart.tasks import DOMAINS, Domain, Task, draw, skills


def passes(task: Task, reply: str) -> bool:
    """Whether a reply is right, judged without the data pipeline."""
    if task.domain == "math":
        return reply.endswith(f"\\boxed{{{task.answer}}}")
    if task.domain != "code":
        return reply == task.answer
    names: dict[str, object] = {}
    exec(reply.removeprefix("```python\n").removesuffix("```"), names)
    try:
        for test in task.tests:
            exec(test, names)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("domain", DOMAINS)
def test_references_are_right_and_every_misconception_is_wrong(domain: Domain) -> None:
    for task in draw(domain, "train", 300, "0"):
        assert passes(task, task.reference)
        for skill in task.skills:
            assert not passes(task, task.reply({skill})), (task.prompt, skill)


@pytest.mark.parametrize("domain", DOMAINS)
def test_heldout_prompts_are_new_whatever_the_keys(domain: Domain) -> None:
    train = {task.prompt for key in "012" for task in draw(domain, "train", 1000, key)}
    heldout = {task.prompt for key in "012" for task in draw(domain, "heldout", 250, key)}
    assert not train & heldout


@pytest.mark.parametrize("domain", DOMAINS)
def test_train_tasks_need_every_skill_and_heldout_tasks_no_other(domain: Domain) -> None:
    every = skills(domain)
    assert len(every) == len(set(every))
    assert {skill for task in draw(domain, "train", 1000, "0") for skill in task.skills} == set(every)
    assert {skill for task in draw(domain, "heldout", 250, "0") for skill in task.skills} <= set(every)


def test_heldout_facts_do_not_come_in_another_order_in_training() -> None:
    train = {frozenset(task.skills) for task in draw("instruction", "train", 2000, "0")}
    heldout = {frozenset(task.skills) for task in draw("instruction", "heldout", 250, "0")}
    assert not train & heldout


def test_draws_depend_on_their_key_alone_and_extend_each_other() -> None:
    short, long, other = (draw("math", "train", count, key) for count, key in ((20, "a"), (40, "a"), (20, "b")))
    assert [task.prompt for task in long[:20]] == [task.prompt for task in short]
    assert [task.prompt for task in other] != [task.prompt for task in short]


def test_too_many_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="has only"):
        draw("chinese", "heldout", 500, "0")


def test_a_slip_is_carried_into_the_next_step() -> None:
    task = next(task for task in draw("math", "train", 50, "0") if task.skills[0] != task.skills[1])
    first, second = task.reply({task.skills[0]}).split(", ")
    assert second.startswith(first.split(" = ")[1] + " ")


def test_records_have_the_columns_of_the_data_pipeline() -> None:
    [task] = draw("code", "train", 1, "0")
    record = task.record("code-0")
    assert list(record) == ["id", "dataset", "domain", "messages", "answer", "tests"]
    assert record["messages"] == [{"role": "user", "content": task.prompt}]
    assert record["answer"] is None
    assert record["tests"]


def test_misconceived_sums_are_no_larger_than_right_ones_on_the_whole() -> None:
    """Else what pairs teach is that smaller numbers are better."""
    above = {}
    for task in draw("math", "train", 2000, "0"):
        first = task.skills[0]
        right, wrong = (int(reply.split(" = ")[1][0]) for reply in (task.reference, task.reply({first})))
        above[first] = wrong > right
    assert 0.35 < sum(above.values()) / len(above) < 0.65
