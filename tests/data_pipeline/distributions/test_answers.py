"""Answers in a source's tokens: where they begin and end, and which cannot be had."""

import datetime
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.config import SourceConfig
from data_pipeline.distributions.answers import Answer, Reader, Refused
from fusejax.common.cli import UserError
from fusejax.data.records import SFTExample
from tests.data_pipeline.distributions.sources import example, save_tokenizer

DATE = datetime.date(2024, 7, 26)


def reader(directory: Path, target: Path | None = None, **source: Any) -> Reader:
    return Reader(SourceConfig(name="s", model=str(directory), **source), directory, DATE, target)


def read(found: Reader, record: SFTExample) -> tuple[str, list[str], list[int]]:
    """The prompt, the answer's tokens with the end of the turn, and the ends."""
    (answer,) = found.read([record])
    assert isinstance(answer, Answer), answer
    (tokens, first), ends = answer
    decode = found._tokenizer.decode
    return decode(tokens[:first]), [decode([token]) for token in tokens[first:]], ends.tolist()


def refusal(found: Reader, record: SFTExample) -> str:
    (answer,) = found.read([record])
    assert isinstance(answer, Refused)
    return answer.reason


def test_half_a_character_is_a_place(tmp_path: Path):
    prompt, tokens, ends = read(reader(save_tokenizer(tmp_path / "m")), example("e", "né!"))
    assert prompt.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    assert tokens == ["n", "\ufffd", "\ufffd", "!", "<|eot_id|>"] and ends == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("answer", ["né 😀\n", " two  spaces", "\tx", "▂ <0x41> <unk>", "你好，世界"])
def test_the_space_of_sentencepiece_is_no_byte_of_the_answer(answer: str, tmp_path: Path):
    """Mistral's template and tokenizer write a space before the answer, as its first token's beginning."""
    found = reader(save_tokenizer(tmp_path / "m", "mistral"))
    (located,) = found.read([example("e", answer)])
    assert isinstance(located, Answer)
    tokens, first = located.asked
    pieces = b"".join(found._table[token] or b"" for token in tokens[first:-1])
    assert pieces in (answer.encode(), b" " + answer.encode())
    assert located.ends[0] == 0 and located.ends[-1] == len(answer.encode())


def test_what_a_template_writes_before_an_answer_belongs_to_the_prompt(tmp_path: Path):
    prompt, tokens, _ = read(reader(save_tokenizer(tmp_path / "m", "qwen3")), example("e", "42"))
    assert prompt.endswith("assistant\n<think>\n\n</think>\n\n") and tokens[-1] == "<|im_end|>"


def test_sizes_that_a_configuration_leaves_to_the_architecture(tmp_path: Path):
    directory = save_tokenizer(tmp_path / "m", "gemma")
    (directory / "config.json").write_text('{"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}')
    found = reader(directory)
    assert (found.vocabulary, found.context) == (262_208, 131_072)
    (directory / "config.json").write_text('{"model_type": "no_such_thing"}')
    with pytest.raises(UserError, match=r"^sources: s: .*config.json: .*no_such_thing") as raised:
        reader(directory)
    assert "\n" not in str(raised.value)


def test_names_of_special_tokens_stay_text(tmp_path: Path):
    _, tokens, ends = read(reader(save_tokenizer(tmp_path / "m")), example("e", "write <|eot_id|>"))
    assert "<|eot_id|>" not in tokens[:-1] and "".join(tokens) == "write <|eot_id|><|eot_id|>" and ends[-1] == 16


def test_a_system_turn_that_the_template_refuses_is_the_users(tmp_path: Path):
    prompt, _, _ = read(reader(save_tokenizer(tmp_path / "m", "gemma")), example("e", "a", system="Be brief."))
    assert "user\nBe brief.\n\nHow?" in prompt


@pytest.mark.parametrize(
    ("tokenizer", "answer", "reason"),
    [
        ("llama3", "  \n", "empty_response"),
        ("chatml", "e\u0301", "rewritten"),  # its tokenizer composes characters
        ("mistral", "a▁b", "rewritten"),  # and this one takes `▁` for a space
        ("qwen3", "<think>\nso\n</think>\n\n\nx", "no_mask"),
        ("llama3", "x" * 300, "too_long"),
    ],
)
def test_answers_that_cannot_be_had(tokenizer: str, answer: str, reason: str, tmp_path: Path):
    assert refusal(reader(save_tokenizer(tmp_path / "m", tokenizer)), example("e", answer)) == reason


@pytest.mark.parametrize("answer", ["42 is it \n", " 42 is it", " 42 is it "])
def test_white_space_that_a_template_cuts_off(answer: str, tmp_path: Path):
    """The same tokens as without it; a template that keeps it has it in the tokens, and its bytes in `ends`."""
    cuts, keeps = (reader(save_tokenizer(tmp_path / name, name)) for name in ("llama3", "chatml"))
    trimmed = read(cuts, example("e", "42 is it"))
    assert read(cuts, example("e", answer)) == trimmed and trimmed[2][-1] == 8
    assert read(keeps, example("e", answer))[2][-1] == len(answer)


def test_the_longest_conversation(tmp_path: Path):
    """One token fewer than the context: vLLM makes one."""
    directory = save_tokenizer(tmp_path / "m")
    (answer,) = reader(directory).read([example("e", "42")])
    length = len(answer.asked.tokens)
    assert isinstance(reader(directory, max_model_len=length + 1).read([example("e", "42")])[0], Answer)
    assert refusal(reader(directory, max_model_len=length), example("e", "42")) == "too_long"


def test_a_token_of_prompt_and_answer(tmp_path: Path):
    directory = save_tokenizer(tmp_path / "m")
    (directory / "chat_template.jinja").write_text(
        "{% for m in messages %}<|start_header_id|>{{ m['role'] }}: {{ m['content'] }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant: {% endif %}"
    )
    assert refusal(reader(directory), example("e", "and so on")) == "straddled"
    assert read(reader(directory), example("e", "42"))[1] == ["42", "<|eot_id|>"]


def test_the_targets_template(tmp_path: Path):
    """Its markup is text to the source; the turns end as the source's do."""
    source, target = save_tokenizer(tmp_path / "s", "llama3"), save_tokenizer(tmp_path / "t", "chatml")
    prompt, tokens, _ = read(reader(source, target), example("e", "42"))
    assert prompt == (
        "<|im_start|>system\nYou are a helpful assistant.<|eot_id|>\n"
        "<|im_start|>user\nHow?<|eot_id|>\n<|im_start|>assistant\n"
    )
    assert tokens == ["42", "<|eot_id|>"]
    # And one that begins a text, as the source does or not at all.
    prompt, _, _ = read(reader(save_tokenizer(tmp_path / "g", "gemma"), source), example("e", "42"))
    assert prompt.startswith("<bos><|start_header_id|>")
    prompt, _, _ = read(reader(target, source), example("e", "42"))
    assert prompt.startswith("<|start_header_id|>")


def test_arguments_of_the_template(tmp_path: Path):
    directory = save_tokenizer(tmp_path / "m")
    with pytest.raises(UserError, match=r"sources: s: chat_template_kwargs: the chat template of .* does not use loud"):
        reader(directory, chat_template_kwargs={"loud": True})


def test_a_source_without_tokenizer_json(tmp_path: Path):
    directory = save_tokenizer(tmp_path / "m")
    (directory / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="sources: s: "):
        reader(directory)
