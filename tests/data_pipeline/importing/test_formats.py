"""Rows of every form, one by one: what turns are read, where a prompt ends, what is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.importing import mixing, turns
from data_pipeline.importing.config import ImportColumns
from data_pipeline.importing.formats import Content, UnknownFormatError, common_text, find_format, read
from data_pipeline.prompts.adapters import Rejected
from fusejax.data.records import Message
from tests.data_pipeline.importing.fixtures import said, user

SYSTEM: Message = {"role": "system", "content": "Be brief."}


def parse(**row: Any) -> Content:
    return read(row, find_format(list(row), ImportColumns()))


def reason(**row: Any) -> str:
    with pytest.raises(Rejected) as error:
        parse(**row)
    return error.value.reason


TEXT = st.sampled_from(["a", "b", "你好"])
"""Few, so that turns are often equal by chance."""


@st.composite
def conversations(draw: st.DrawFn, last: str = "user") -> list[Message]:
    """Of the user and the assistant in turns, perhaps after a system turn."""
    length = 2 * draw(st.integers(0, 2)) + (1 if last == "user" else 2)
    spoken = [(user if place % 2 == 0 else said)(draw(TEXT)) for place in range(length)]
    return draw(st.sampled_from([[], [SYSTEM]])) + spoken


@st.composite
def answers(draw: st.DrawFn) -> list[Message]:
    return [said(draw(TEXT)), *(draw(conversations("assistant")) if draw(st.booleans()) else [])]


@given(conversations(), answers(), answers())
def test_a_prompt_inside_is_the_common_beginning(prompt: list[Message], chosen: list[Message], rejected: list[Message]):
    chosen, rejected = ([turn for turn in side if turn != SYSTEM] for side in (chosen, rejected))
    if chosen == rejected:
        assert reason(chosen=prompt + chosen, rejected=prompt + rejected) == "equal_answers"
        return
    found = parse(chosen=prompt + chosen, rejected=prompt + rejected)
    assert found.prompt + found.chosen == prompt + chosen
    assert found.prompt + found.rejected == prompt + rejected
    assert found.prompt[: len(prompt)] == prompt and found.prompt[-1]["role"] == "user"
    # No longer prompt would do: the answers differ in their first turn, or in the user's reply to it.
    assert found.chosen[:2] != found.rejected[:2] or len(found.chosen) == 1 or len(found.rejected) == 1
    # Where a column has the prompt, it is what that says.
    for row in ({"chosen": chosen, "rejected": rejected}, {"chosen": prompt + chosen, "rejected": prompt + rejected}):
        found = parse(prompt=prompt, **row)
        assert (found.prompt, found.chosen, found.rejected) == (prompt, chosen, rejected)


@given(st.text(), st.text(), st.text())
def test_a_prompt_inside_texts(prompt: str, chosen: str, rejected: str):
    texts = [f"{prompt} {answer}" for answer in (chosen, rejected)]
    found = common_text(*texts)
    if found is None:
        assert not prompt.strip()
        return
    asked, *rest = found
    assert prompt.strip() in asked and asked == asked.strip()
    for text, answer in zip(texts, rest, strict=True):
        assert text.endswith(answer) and text.strip().startswith(asked)
        assert not text.removesuffix(answer).strip().removeprefix(asked).strip()


@given(conversations("assistant"))
def test_all_forms_of_turns_are_the_same(conversation: list[Message]):
    names = {"system": "SYSTEM", "user": "human", "assistant": "Bard"}
    for form in (
        conversation,
        [{"from": names[turn["role"]], "value": turn["content"]} for turn in conversation],
        [{**turn, "content": [{"type": "text", "text": turn["content"]}], "name": None} for turn in conversation],
        {key: [turn[key] for turn in conversation] for key in ("role", "content")},
        [{"role": "developer", "content": " "}, *conversation] if conversation[0] != SYSTEM else conversation,
    ):
        assert parse(messages=form).chosen == conversation
    assert parse(prompt=conversation[:-1], completion=conversation[-1]["content"]).chosen == conversation


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(0.01, 100)), min_size=1, max_size=5))
def test_a_mixture_is_as_large_as_it_can_be(sets: list[tuple[int, float]]):
    available, weights = zip(*sets, strict=True)
    sizes = mixing.sizes(available, weights)
    assert all(0 <= size <= count for size, count in zip(sizes, available, strict=True))
    assert any(size == count for size, count in zip(sizes, available, strict=True))
    scale = min(count / weight for count, weight in sets)
    assert all(abs(size - scale * weight) <= 0.5 + 1e-6 for size, weight in zip(sizes, weights, strict=True))


def test_answers_that_agree_at_first():
    """The turns that both sides share after the user's last common one are part of both answers."""
    found = parse(
        chosen=[user("a"), said("b"), user("c"), said("d")], rejected=[user("a"), said("b"), user("e"), said("f")]
    )
    assert found.prompt == [user("a")] and found.chosen == [said("b"), user("c"), said("d")]
    found = parse(chosen=[user("a"), said("b")], rejected=[user("a"), said("b"), user("c"), said("d")])
    assert (found.prompt, found.chosen, len(found.rejected)) == ([user("a")], [said("b")], 3)


def test_a_system_column_goes_first():
    found = parse(prompt="a", chosen="b", rejected="c", system="Be brief.")
    assert found.prompt == [SYSTEM, user("a")] and found.chosen == [said("b")]
    assert parse(messages=[SYSTEM, user("a"), said("b")], system="Be brief.").chosen == [SYSTEM, user("a"), said("b")]
    assert reason(messages=[SYSTEM, user("a"), said("b")], system="Be long.") == "turn_order"
    found = parse(prompt="a", chosen=[user("a"), said("b")], rejected=[user("a"), said("c")], system="Be brief.")
    assert found.prompt == [SYSTEM, user("a")]
    assert parse(instruction="a", input=None, output=7, system="").chosen == [user("a"), said("7")]


def test_texts_that_look_like_turns_stay_texts():
    """But for the column that must hold turns, where a table of texts can only hold JSON."""
    json = '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'
    assert parse(messages=json).chosen == [user("a"), said("b")]
    assert parse(prompt="Write JSON.", completion=json).chosen[1]["content"] == json
    assert (
        turns.is_turns(json) and not turns.is_turns("[1, 2]") and not turns.is_turns("[") and not turns.is_turns(None)
    )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": None}, "no_turns"),
        ({"messages": []}, "no_turns"),
        ({"messages": 7}, "no_turns"),
        ({"messages": "Hi"}, "no_turns"),
        ({"messages": ["Hi"]}, "no_turns"),
        ({"messages": [{"role": "user", "content": "a"}, {"content": "b"}]}, "no_turns"),
        ({"messages": [user("a"), user("b"), said("c")]}, "turn_order"),
        ({"messages": [user("a"), SYSTEM, said("c")]}, "turn_order"),
        ({"messages": [SYSTEM, said("c")]}, "turn_order"),
        ({"messages": [user("a"), {"role": "assistant", "content": {"a": 1}}]}, "not_text"),
        ({"messages": [user("a"), {"role": "assistant", "content": True}]}, "not_text"),
        ({"messages": [user("a"), {"role": "assistant", "content": ["b", 7]}]}, "not_text"),
        ({"messages": [user("a"), {"role": "assistant", "content": None}]}, "empty_turn"),
        ({"messages": [user("a"), {"role": "assistant", "content": "b", "train": False}]}, "not_for_training"),
        ({"conversations": [{"from": "observation", "value": "a"}]}, "unknown_role"),
        ({"prompt": " ", "completion": "b"}, "no_prompt"),
        ({"prompt": [user("a")], "completion": [user("b"), said("c")]}, "prompts_differ"),
        ({"instruction": [user("a")], "input": "b", "output": "c"}, "not_text"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "equal_answers"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "empty_turn"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "empty_turn"),
        ({"prompt": None, "chosen": "b", "rejected": "c"}, "no_prompt"),
        ({"prompt": 0.5, "chosen": "b", "rejected": "c"}, "not_text"),
        ({"prompt": "a", "chosen": [user("z"), said("b")], "rejected": [user("z"), said("c")]}, "prompts_differ"),
        ({"prompt": "a", "chosen": [user("a"), said("b")], "rejected": [user("x a"), said("c")]}, "prompts_differ"),
        ({"prompt": [user("a"), said("b")], "chosen": "c", "rejected": "d"}, "turn_order"),
        ({"chosen": [user("a"), said("b")], "rejected": [user("z"), said("c")]}, "no_prompt"),
        ({"chosen": [user("a"), said("b")], "rejected": "c"}, "no_prompt"),
        ({"chosen": "one", "rejected": "other"}, "no_prompt"),
        ({"chosen": [user("a")], "rejected": [user("a"), said("c")]}, "no_assistant_turn"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": "high"}, "bad_score"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": float("inf")}, "bad_score"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "score_rejected": True}, "bad_score"),
    ],
)
def test_what_is_refused(row: dict[str, Any], expected: str):
    assert reason(**row) == expected


def test_turns_that_nobody_answered_are_cut():
    found = parse(chosen=[user("a"), said("b"), user("c")], rejected=[user("a"), said("d")])
    assert found.cut and found.chosen == [said("b")]
    assert not parse(chosen=[user("a"), said("b")], rejected=[user("a"), said("d")]).cut


@pytest.mark.parametrize(
    ("present", "named", "columns"),
    [
        (["a", "messages", "id"], {}, {"messages": "messages", "id": "id"}),
        (["prompt", "messages"], {}, {"messages": "messages"}),
        (["instruction", "output", "input"], {}, {"prompt": "instruction", "completion": "output", "input": "input"}),
        (["question", "answer", "input"], {"prompt": "question", "completion": "answer"},
         {"prompt": "question", "completion": "answer"}),
        (["prompt", "response", "completion"], {"completion": "response"},
         {"prompt": "prompt", "completion": "response"}),
        (["prompt", "good", "bad", "mark"], {"chosen": "good", "rejected": "bad", "chosen_score": "mark"},
         {"prompt": "prompt", "chosen": "good", "rejected": "bad", "chosen_score": "mark"}),
        (["prompt", "chosen", "rejected", "reward_chosen"], {},
         {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", "chosen_score": "reward_chosen"}),
        (["question", "chosen", "rejected"], {"chosen": "chosen", "rejected": "rejected"},
         {"chosen": "chosen", "rejected": "rejected"}),
        (["prompt", "completion", "label", "system_prompt"], {"prompt": "prompt"},
         {"prompt": "prompt", "completion": "completion", "system": "system_prompt"}),
        (["prompt", "chosen", "rejected"], {"prompt": "prompt", "completion": "chosen"},
         {"prompt": "prompt", "completion": "chosen"}),
    ],
)  # fmt: skip
def test_the_format_of_columns(present: list[str], named: dict[str, str], columns: dict[str, str]):
    assert find_format(present, ImportColumns(**named)).columns == columns


def test_columns_that_serve_for_both():
    present = ["messages", "chosen", "rejected"]
    with pytest.raises(UnknownFormatError, match="set kind=sft or kind=dpo"):
        find_format(present, ImportColumns())
    assert find_format(present, ImportColumns(), "sft").columns == {"messages": "messages"}
    assert find_format(present, ImportColumns(), "dpo").columns == {"chosen": "chosen", "rejected": "rejected"}
