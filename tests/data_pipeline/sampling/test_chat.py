"""Prompts as token ids: answers that are begun for the model, raw text, BOS twice; against transformers."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.sampling.chat import ChatTokenizer, Refused
from tests.data.families import make_tokenizer

TURNS = [{"role": "user", "content": "Write add, please."}]
PREFIX = "Below is a Python script:\n```python\ndef add"
BEGINS = {"llama3": "<|begin_of_text|>", "gemma": "<bos>", "chatml": None}
"""Llama-3.1, Gemma-2, Qwen2.5: family -> what the tokenizer begins a text with."""


@pytest.fixture(scope="module", params=BEGINS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def directory(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(family)
    make_tokenizer(family).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 4096}))
    return folder


@pytest.fixture
def chat(directory: Path) -> ChatTokenizer:
    return ChatTokenizer("s", directory, None)


def rendered(family: str, turns: list[dict[str, str]], **how: Any) -> list[int]:
    return make_tokenizer(family).apply_chat_template(turns, return_dict=False, **how)


@pytest.mark.parametrize("prefix", [PREFIX, "Sure", "\\boxed{", "中国"])
def test_an_answer_that_is_begun(family: str, chat: ChatTokenizer, prefix: str):
    begun = [*TURNS, {"role": "assistant", "content": prefix}]
    assert chat.encode(TURNS, prefix) == rendered(family, begun, continue_final_message=True)
    assert chat.encode(TURNS) == chat.encode(TURNS, "") == rendered(family, TURNS, add_generation_prompt=True)


def test_a_prefix_is_written_as_it_is(family: str, chat: ChatTokenizer):
    """Its last line break stays, which templates would cut off, and special tokens that it spells are text."""
    tokenizer = make_tokenizer(family)
    opened = tokenizer.decode(chat.encode(TURNS))
    assert tokenizer.decode(chat.encode(TURNS, "```python\n")) == f"{opened}```python\n"
    end = tokenizer.eos_token
    spelled = chat.encode(TURNS, f"say {end}")
    assert tokenizer.decode(spelled) == f"{opened}say {end}"
    assert spelled.count(tokenizer.eos_token_id) == chat.encode(TURNS).count(tokenizer.eos_token_id)
    assert chat.changes == {"spelled": 1}


def test_raw_text_is_what_it_spells(family: str, chat: ChatTokenizer):
    tokenizer = make_tokenizer(family)
    ids = chat.encode(TURNS, PREFIX)
    assert chat.encode_text(tokenizer.decode(ids)) == ids
    assert tokenizer.decode(chat.encode_text("no turns")) == "no turns"
    with pytest.raises(Refused, match=r"^empty_prompt: "):
        chat.encode_text("")


def test_bos_once_or_twice(family: str, chat: ChatTokenizer):
    tokenizer, bos = make_tokenizer(family), BEGINS[family]
    text = tokenizer.decode(chat.encode(TURNS))

    def count(ids: list[int]) -> int:
        return sum(each == tokenizer.bos_token_id for each in ids)

    once = 0 if bos is None else 1
    assert count(chat.encode(TURNS)) == count(chat.encode_text(text)) == once
    assert count(chat.encode(TURNS, PREFIX, bos_again=True)) == 2 * once
    assert chat.encode_text(text, bos_again=True) == tokenizer(text).input_ids == chat.encode(TURNS, bos_again=True)
    assert count(chat.encode_text("no turns", bos_again=True)) == once


def test_there_is_room_for_an_answer(directory: Path, chat: ChatTokenizer):
    again = {"bos_again": True}
    asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("encode", (TURNS, PREFIX), {}), ("encode", (TURNS, PREFIX), again),
        ("encode_text", ("some words",), {}), ("encode_text", ("some words",), again),
    ]  # fmt: skip
    for name, arguments, how in asked:
        ids = getattr(chat, name)(*arguments, **how)
        assert getattr(ChatTokenizer("s", directory, len(ids) + 1), name)(*arguments, **how) == ids
        with pytest.raises(Refused, match=rf"^prompt_too_long: {len(ids)} of {len(ids)} tokens$"):
            getattr(ChatTokenizer("s", directory, len(ids)), name)(*arguments, **how)
