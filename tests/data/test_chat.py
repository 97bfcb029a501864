"""Ids against `apply_chat_template`, masks against templates that mark the assistant's words themselves."""

import copy
import datetime
import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fusejax.common.chat_template import TemplateError, encode_prompt, render, writes_date
from fusejax.common.cli import UserError
from fusejax.data.chat import ChatError, encode_conversation, encode_conversations, load_tokenizer, turn_end
from tests.data.families import make_tokenizer, marked_template


def talk(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    """User and assistant in turn."""
    start = [{"role": "system", "content": system}] if system is not None else []
    return start + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


CONVERSATIONS = {
    "single": talk("Hello", "I am fine, thank you."),
    "multi": talk("Hello", "I am fine.", "And 1+1?", "The answer is \\boxed{2}.", "Thanks", "You are welcome!"),
    "open": talk("Hello", "I am fine.", "And now?"),
    "chinese": talk("你好，中国的首都是哪里？", "中国的首都是北京。", "谢谢！", "不客气，世界！"),
    "emoji": talk("😀?", "👩‍👩‍👧‍👦😀 é e\u0301 ﬁ 𝕏 ¯\\_(ツ)_/¯", "🇨🇳", "🏳️‍🌈"),
    "spaces": talk("  Hello  ", "  I am\n\n\n    indented   and trailing \n\n ", " \n", "\tx\t"),
    "repeats": talk("yes", "yes", "yes", "yes yes yes", "yes", "yes"),
    "one character": talk("a", "a"),
    "code": talk("def add(a, b):", "```python\ndef add(a, b):\n    return a + b\n```\n"),
    "mimics us": talk("Sentinel", "Sentinell SentinelSentinel", "b", "Sentinel"),
    "system": talk("Hello", "I am fine.", system=" You are a helpful 助手. "),
    "jinja": talk("{{ messages }}", "{% for x in y %}{{ x }}{% endfor %}{# no #}"),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_ids_are_the_templates_and_mask_is_the_assistants(family, name):
    tokenizer, messages = make_tokenizer(family), CONVERSATIONS[name]
    tokens, loss_mask, _ = encode_conversation(tokenizer, messages)
    if name == "system" and family in ("gemma", "mistral"):  # whose templates have no place for it
        system, user, *rest = messages
        messages = [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]
    assert tokens.dtype == np.int32 and loss_mask.dtype == bool
    assert tokens.tolist() == tokenizer.apply_chat_template(messages, return_dict=False)
    reference = tokenizer.apply_chat_template(
        messages, chat_template=marked_template(family), return_dict=True, return_assistant_tokens_mask=True
    )
    assert reference["input_ids"] == tokens.tolist()
    assert loss_mask.astype(int).tolist() == reference["assistant_masks"]


NO_THOUGHTS = "<think>\n\n</think>\n\n"
"""What Qwen3's template writes before a last answer without reasoning."""
PIECES = st.sampled_from(["a", "Hello", " ", "\n", "😀", "你", "é", "<|im_", "</", "1", "."])
TEXT = st.lists(PIECES, max_size=8).map("".join).filter(str.strip)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(TEXT, min_size=2, max_size=5))
def test_any_text(family, turns):
    tokenizer, messages = make_tokenizer(family), talk(*turns)
    tokens, loss_mask, _ = encode_conversation(tokenizer, messages)
    assert tokens.tolist() == tokenizer.apply_chat_template(messages, return_dict=False)
    reference = tokenizer.apply_chat_template(
        messages, chat_template=marked_template(family), return_dict=True, return_assistant_tokens_mask=True
    )
    assert loss_mask.astype(int).tolist() == reference["assistant_masks"]


def test_one_bos(family):
    tokenizer = make_tokenizer(family)
    tokens, _, _ = encode_conversation(tokenizer, CONVERSATIONS["multi"])
    if tokenizer.bos_token:
        assert tokens.tolist().count(tokenizer.bos_token_id) == 1


def test_end_of_turn_is_a_target_even_where_it_is_padding_too(family):
    tokenizer = make_tokenizer(family)
    tokens, loss_mask, _ = encode_conversation(tokenizer, CONVERSATIONS["multi"])
    ends = {"llama3": "<|eot_id|>", "chatml": "<|im_end|>", "gemma": "<end_of_turn>", "mistral": "</s>"}
    ends |= {"qwen3": ends["chatml"], "gemma3": ends["gemma"]}
    end = tokenizer.convert_tokens_to_ids(ends[family])
    assert (tokens[loss_mask] == end).sum() == 3  # one an assistant turn


def test_targets_from_a_turn_on(family):
    tokenizer, messages = make_tokenizer(family), CONVERSATIONS["multi"]
    everything, last = (encode_conversation(tokenizer, messages, first=which) for which in (0, 5))
    assert np.array_equal(everything.tokens, last.tokens)
    target = tokenizer.decode(last.tokens[last.loss_mask])
    assert target.removeprefix(NO_THOUGHTS).strip().startswith("You are welcome!")
    first = last.loss_mask.argmax()
    assert np.array_equal(everything.loss_mask[first:], last.loss_mask[first:]) and everything.loss_mask[:first].any()


def refused(tokenizer, messages, **options) -> ChatError:
    with pytest.raises(ChatError) as caught:
        encode_conversation(tokenizer, messages, **options)
    return caught.value


def test_nothing_to_train_on(tokenizer):
    assert refused(tokenizer, talk("Hello")).reason == "empty_mask"
    assert refused(tokenizer, CONVERSATIONS["open"], first=2).reason == "empty_mask"
    assert refused(tokenizer, talk("Hello", "")).reason == "empty_response"
    assert refused(tokenizer, talk("Hello", " \n\t")).reason == "empty_response"


def test_a_template_that_refuses():
    system, question, answer = CONVERSATIONS["system"]
    error = refused(make_tokenizer("gemma"), [system, answer, question, answer])
    assert (error.reason, error.detail) == ("template_error", "System role not supported")


def test_who_is_asked_sees_what_is_trained(family):
    """Up to the answer, the text of training is what samplers and evaluation ask with, system turn and all."""
    tokenizer, messages = make_tokenizer(family), CONVERSATIONS["system"]
    tokens, loss_mask, _ = encode_conversation(tokenizer, messages)
    asked = encode_prompt(tokenizer, messages[:-1])
    assert tokens[: loss_mask.argmax()].tolist() == asked.tokens


def test_what_the_template_writes_before_an_answer_is_a_target_if_it_is_not_asked_with():
    """So the plain generation prompt is answered at once; and so is the one without thinking, as it ends with a part of
    the target."""
    tokenizer, messages = make_tokenizer("qwen3"), CONVERSATIONS["multi"]
    tokens, mask, _ = encode_conversation(tokenizer, messages)
    targets = tokenizer.decode(tokens[mask])
    assert (
        targets
        == "I am fine.<|im_end|>The answer is \\boxed{2}.<|im_end|>" + NO_THOUGHTS + "You are welcome!<|im_end|>"
    )
    options = {"add_generation_prompt": True, "enable_thinking": False, "return_dict": False}
    without_thinking = tokenizer.apply_chat_template(messages[:-1], **options)
    assert tokens[: len(without_thinking)].tolist() == without_thinking


def test_reasoning_in_an_answer_is_a_target():
    tokenizer = make_tokenizer("qwen3")
    thoughtful = ["<think>\nI add.\n</think>\n\nIt is 2.", "<think>\nI think.\n</think>\n\nYes."]
    tokens, mask, _ = encode_conversation(tokenizer, talk("1+1?", thoughtful[0], "Sure?", thoughtful[1]))
    assert tokenizer.decode(tokens[mask]) == "It is 2.<|im_end|>" + thoughtful[1] + "<|im_end|>"
    assert refused(tokenizer, talk("1+1?", "<think>I add.</think>It is 2.")).reason == "no_mask"


START = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
NO_MASK = {
    "drops the assistant": START + "{% if m['role'] == 'user' %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}",
    "writes it twice": START + "{{ m['content'] + '<|im_end|>' + m['content'] + '<|im_end|>' }}{% endfor %}",
    "ends no turn": START + "{{ m['content'] }}\n{% endfor %}",
    "ends turns in plain text": START + "{{ m['content'] }}### End\n<|im_end|>{% endfor %}",
    "ends no last turn": START + "{{ m['content'] }}{% if not loop.last %}<|im_end|>{% endif %}{% endfor %}",
    "counts characters": START + "{{ m['content'] }}<|im_end|>{{ m['content']|length }}{% endfor %}",
    "depends on the text": START + "{{ m['content'] }}<|im_end|>{{ '!' if 'a' in m['content']|lower }}{% endfor %}",
    "rewrites": START + "{{ m['content']|upper }}<|im_end|>{% endfor %}",
}


@pytest.mark.parametrize("what", NO_MASK)
def test_a_template_that_hides_the_mask(what, monkeypatch):
    tokenizer = make_tokenizer("chatml")
    monkeypatch.setattr(tokenizer, "chat_template", NO_MASK[what])
    for name in ("single", "multi", "open"):
        assert refused(tokenizer, CONVERSATIONS[name]).reason == "no_mask"


GENERATION_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def with_template(monkeypatch, family, template):
    tokenizer = make_tokenizer(family)
    monkeypatch.setattr(tokenizer, "chat_template", template)
    return tokenizer


def targets(tokenizer, messages, **options):
    tokens, mask, changes = encode_conversation(tokenizer, messages, **options)
    return tokenizer.decode(tokens[mask]), changes


def test_a_system_turn_that_is_asked_with_but_not_trained_on():
    """Mistral's writes it only where the last turn is the user's."""
    tokenizer = make_tokenizer("mistral")
    system = {"role": "system", "content": "Answer in French."}
    one = [system, *talk("Hello", "Bonjour.")]
    tokens, mask, changes = encode_conversation(tokenizer, one)
    assert changes == {"folded"}
    asked = tokenizer.apply_chat_template(one[:-1], add_generation_prompt=True, return_dict=False)
    assert tokens[: mask.argmax()].tolist() == asked and "French" in tokenizer.decode(asked)
    # In a longer conversation it is asked for at another place each time, so no text has all prompts.
    error = refused(tokenizer, [*one, *talk("And?", "Oui.")])
    assert error.reason == "prompt_differs" and "Answer in French" in error.detail


def test_a_system_turn_that_the_template_drops_goes_to_the_users(monkeypatch):
    only = "{% for m in messages if m['role'] != 'system' %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    tokenizer = with_template(monkeypatch, "chatml", only)
    messages = [{"role": "system", "content": "Be brief."}, *talk("Hi", "Hello")]
    tokens, _, changes = encode_conversation(tokenizer, messages)
    assert changes == {"folded"} and "Be brief.\n\nHi" in tokenizer.decode(tokens)
    assert encode_prompt(tokenizer, messages[:-1]).changes == {"folded"}
    error = refused(tokenizer, [messages[0], messages[2]])
    assert error.reason == "template_error" and "leaves out the system turn" in error.detail


def test_a_system_turn_that_the_template_drops_is_missed_even_where_the_user_says_the_same(monkeypatch):
    only = "{% for m in messages if m['role'] != 'system' %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    messages = [{"role": "system", "content": "Be brief."}, *talk("Be brief.\nHi", "Hello")]
    found = encode_conversation(with_template(monkeypatch, "chatml", only), messages)
    assert found.changes == {"folded"}
    tokenizer = with_template(monkeypatch, "chatml", TURNS + GENERATION_PROMPT)
    assert not encode_conversation(tokenizer, messages).changes


def test_a_system_turn_that_the_template_shortens_stays_one(monkeypatch):
    """As SmolLM3's does with what switches reasoning off."""
    shortens = TURNS.replace("m['content']", "m['content'].replace('/no_think', '')") + GENERATION_PROMPT
    tokenizer = with_template(monkeypatch, "chatml", shortens)
    found = encode_conversation(tokenizer, [{"role": "system", "content": "Be brief. /no_think"}, *talk("Hi", "Hello")])
    assert not found.changes and "system\nBe brief. <|im_end|>" in tokenizer.decode(found.tokens)


def test_a_later_system_turn_that_the_template_drops_is_refused(monkeypatch):
    later = [*talk("Hi", "Hello"), {"role": "system", "content": "Be brief."}, *talk("And?", "Yes.")]
    first = TURNS.replace("in messages", "in messages if m['role'] != 'system' or m == messages[0]")
    tokenizer = with_template(monkeypatch, "chatml", first + GENERATION_PROMPT)
    error = refused(tokenizer, later)
    assert error.reason == "template_error" and "leaves out a system turn" in error.detail
    with pytest.raises(TemplateError, match="leaves out a system turn"):
        encode_prompt(tokenizer, later[:-1])


def test_an_empty_system_turn_adds_nothing_to_the_users(monkeypatch):
    only = "{% for m in messages if m['role'] != 'system' or raise_exception('no system') %}"
    tokenizer = with_template(monkeypatch, "chatml", TURNS.replace("{% for m in messages %}", only))
    found = encode_conversation(tokenizer, [{"role": "system", "content": " "}, *talk("Hi", "Hello")])
    assert found.changes == {"folded"}
    assert found.tokens.tolist() == encode_conversation(tokenizer, talk("Hi", "Hello")).tokens.tolist()


def test_a_generation_prompt_that_opens_a_thought(monkeypatch):
    thought = TURNS + GENERATION_PROMPT.replace("assistant\n", "assistant\n<think>\n")
    tokenizer = with_template(monkeypatch, "qwen3", thought)
    error = refused(tokenizer, talk("Hi", "Hello"))
    assert error.reason == "prompt_differs"
    assert r"reads 'im_start|>assistant\n<think>\n'" in error.detail
    assert r"trained on 'im_start|>assistant\nHello" in error.detail
    # An answer that begins with that thought goes on from the prompt.
    found, changes = targets(tokenizer, talk("Hi", "<think>\nHm.\n</think>\n\nHello"))
    assert found == "Hm.\n</think>\n\nHello<|im_end|>" and not changes


def test_reasoning_that_the_template_drops_is_counted(monkeypatch):
    answer = "(m['content'].split('</think>')|last) if m['role'] == 'assistant' else m['content']"
    tokenizer = with_template(monkeypatch, "qwen3", TURNS.replace("m['content']", answer) + GENERATION_PROMPT)
    found, changes = targets(tokenizer, talk("Hi", "<think>Hm.</think>Hello"))
    assert found == "Hello<|im_end|>" and changes == {"shortened"}
    assert refused(tokenizer, talk("Hi", "<think>Hm.</think>")).reason == "empty_response"


def test_words_between_prompt_and_answer_are_targets(monkeypatch):
    words = TURNS.replace("\n{{", "\n{{ 'Sure: ' if m['role'] == 'assistant' }}{{")
    tokenizer = with_template(monkeypatch, "chatml", words + GENERATION_PROMPT)
    assert targets(tokenizer, talk("Hi", "Hello")) == ("Sure: Hello<|im_end|>", set())
    # Without a generation prompt the model has to begin the turn itself.
    tokenizer = with_template(monkeypatch, "chatml", TURNS)
    assert targets(tokenizer, talk("Hi", "Hello"))[0] == "<|im_start|>assistant\nHello<|im_end|>"


def test_a_token_of_prompt_and_answer_is_a_target_and_counted(monkeypatch):
    colon = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
    tokenizer = with_template(monkeypatch, "chatml", colon + "{% if add_generation_prompt %}assistant: {% endif %}")
    found, changes = targets(tokenizer, talk("Hi", "quick"))
    assert found == " quick<|im_end|>" and changes == {"straddled"}


def test_a_prompt_that_has_other_tokens_where_an_answer_follows():
    """No token straddles here: the rule that splits words looks ahead."""
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "x": 1, "xx": 2, "y": 3, "<end>": 4}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("x+(?=y)|x|y"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
    said = "{% for m in messages %}{{ 'xx' if m['role'] == 'assistant' }}{{ m['content'] }}<end>{% endfor %}"
    tokenizer.chat_template = said + "{% if add_generation_prompt %}xx{% endif %}"
    assert encode_prompt(tokenizer, talk("y")).tokens == [3, 4, 1, 1]
    assert encode_conversation(tokenizer, talk("y", "x")).tokens.tolist() == [3, 4, 1, 1, 1, 4]
    error = refused(tokenizer, talk("y", "y"))
    assert error.reason == "prompt_differs" and "other tokens" in error.detail


STOPS = {
    # What follows an answer -> the targets behind it, with both tokens as stop tokens, and with the second alone.
    "<|im_end|><|im_start|>": ("<|im_end|>", "<|im_end|><|im_start|>"),
    "<|im_end|>\n<|im_start|>\n": ("<|im_end|>", "<|im_end|>\n<|im_start|>"),
    "<|im_end|> over <|im_start|>": ("<|im_end|>", "<|im_end|> over <|im_start|>"),
    " over <|im_start|>": (" over <|im_start|>", " over <|im_start|>"),
}


@pytest.mark.parametrize("closing", STOPS)
def test_an_answer_ends_with_the_token_that_stops_generation(closing, monkeypatch):
    turns = "{% for m in messages %}{{ m['content'] }}" + closing + "{% endfor %}"
    tokenizer = with_template(monkeypatch, "chatml", turns)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    both, second = STOPS[closing]
    messages = talk("a", "b", "c", "d")
    assert targets(tokenizer, messages, stop_ids=[start, end])[0] == f"b{both}d{both}"
    assert targets(tokenizer, messages, stop_ids=[start])[0] == f"b{second}d{second}"


def test_targets_stay_in_their_turn(monkeypatch):
    """A stop token that only the last turn has is no target of earlier ones."""
    last = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    last += "{% if messages[-1]['role'] == 'assistant' %}<|im_start|>{% endif %}"
    tokenizer = with_template(monkeypatch, "chatml", last)
    stop = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert targets(tokenizer, talk("a", "b", "c", "d"), stop_ids=[stop])[0] == "b<|im_end|>d<|im_end|><|im_start|>"


def test_the_token_that_ends_turns():
    tokenizer = make_tokenizer("gemma")
    assert turn_end(tokenizer, [tokenizer.eos_token_id]) == tokenizer.convert_tokens_to_ids("<end_of_turn>")


def test_the_token_that_ends_turns_after_a_thought(monkeypatch):
    """The template trains on answers with that thought alone, so it is with one that the end is found."""
    thought = TURNS + GENERATION_PROMPT.replace("assistant\n", "assistant\n<think>\n")
    tokenizer = with_template(monkeypatch, "qwen3", thought)
    assert turn_end(tokenizer, []) == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_an_unknown_token_is_counted(monkeypatch):
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1, "<end>": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="<end>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<end>{% endfor %}"
    assert encode_conversation(tokenizer, talk("hello", "hello")).changes == set()
    assert encode_conversation(tokenizer, talk("hello", "hello 你")).changes == {"unknown_token"}


DATES = {
    "Today is {{ strftime_now('%d %b %Y') }}. ": "Today is 26 Jul 2024. ",
    "{% if strftime_now is defined %}{{ strftime_now('%Y-%m-%d %H:%M%%') }}{% endif %}": "2024-07-26 00:00%%",
    "\n{%- macro day() %}{{ strftime_now('%B %-d') }}{% endmacro %}{{ day() }}": "July 26",
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}": (
        "26 Jul 2024"
    ),
    "{% if not date_string is defined %}{% set date_string = '1970' %}{% endif %}{{ date_string }}": "26 Jul 2024",
    "\n{% if date_string is defined %}{{ date_string }}{% endif %}": "",
}


@pytest.mark.parametrize("template", DATES)
def test_a_template_is_told_one_date(template, monkeypatch):
    tokenizer = with_template(monkeypatch, "chatml", template + TURNS + GENERATION_PROMPT)
    turns = "<|im_start|>user\nHi<|im_end|>\n"
    assert render(tokenizer, talk("Hi")).lstrip("\n") == DATES[template] + turns
    assert writes_date(tokenizer) == bool(DATES[template])
    other = datetime.date(2025, 1, 31)
    tokens = encode_conversation(tokenizer, talk("Hi", "Hello"), date=other).tokens
    expected = DATES[template]
    for old, new in {"26": "31", "July": "January", "Jul": "Jan", "2024": "2025", "-07-": "-01-"}.items():
        expected = expected.replace(old, new)
    assert tokenizer.decode(tokens).lstrip("\n").startswith(expected + turns)


def test_many_at_once_keep_their_places(tokenizer):
    conversations = [CONVERSATIONS["single"], talk("Hello"), CONVERSATIONS["multi"], talk("a", "")]
    results = encode_conversations(tokenizer, conversations)
    assert [getattr(result, "reason", None) for result in results] == [None, "empty_mask", None, "empty_response"]
    assert np.array_equal(results[2].tokens, encode_conversation(tokenizer, CONVERSATIONS["multi"]).tokens)
    assert [result.reason for result in encode_conversations(tokenizer, [talk("Hello")])] == ["empty_mask"]


def test_load_tokenizer(tmp_path, family):
    make_tokenizer(family).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    messages = CONVERSATIONS["multi"]
    expected = encode_conversation(make_tokenizer(family), messages)
    assert np.array_equal(encode_conversation(loaded, messages).tokens, expected.tokens)


def test_load_tokenizer_with_several_templates(tmp_path):
    tokenizer = copy.deepcopy(make_tokenizer("chatml"))
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "tools"}
    tokenizer.save_pretrained(tmp_path / "two")
    expected = encode_conversation(make_tokenizer("chatml"), talk("Hi", "Hello"))
    found = encode_conversation(load_tokenizer(tmp_path / "two"), talk("Hi", "Hello"))
    assert np.array_equal(found.tokens, expected.tokens)
    tokenizer.chat_template = {"rag": "documents", "tool_use": "tools"}
    tokenizer.save_pretrained(tmp_path / "none")
    with pytest.raises(UserError, match=r"none of its chat templates \(rag, tool_use\) is called default"):
        load_tokenizer(tmp_path / "none")


def test_load_tokenizer_mistakes(tmp_path):
    plain = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=plain).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no chat template"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"tokenizer .*nowhere: no such directory"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.skipif("FUSEJAX_DATA" not in os.environ, reason="needs FUSEJAX_DATA, a folder of real conversations")
def test_real_conversations(family):
    """Real two-turn questions with real long answers of other prompts."""

    def read(name):
        with gzip.open(Path(os.environ["FUSEJAX_DATA"]) / name, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    answers = [row["response"] for row in read("instruction_alpaca_eval_answers.jsonl.gz")]
    tokenizer = make_tokenizer(family)
    for i, question in enumerate(read("chat_mt_bench_questions.jsonl.gz")):
        first, second = question["turns"]
        messages = talk(first, answers[20 * i], second, answers[20 * i + 1])
        tokens, loss_mask, _ = encode_conversation(tokenizer, messages)
        reference = tokenizer.apply_chat_template(
            messages, chat_template=marked_template(family), return_dict=True, return_assistant_tokens_mask=True
        )
        assert reference["input_ids"] == tokens.tolist()
        assert reference["assistant_masks"] == loss_mask.astype(int).tolist()
