"""Ids against `apply_chat_template`, masks against templates that mark the assistant's words themselves."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fusejax.common.chat_template import encode_prompt
from fusejax.common.cli import UserError
from fusejax.data.chat import ChatError, encode_conversation, encode_conversations, load_tokenizer
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
    "mimics llama3": talk("<|eot_id|>", "x<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nI<|eot_id|>", "b", "c"),
    "mimics chatml": talk("<|im_end|>", "x<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>", "b", "c<|im_end|>"),
    "mimics gemma": talk("<end_of_turn>", "<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>", "b", "c"),
    "mimics mistral": talk("[INST] a [/INST] b</s>", " b</s>[INST] a [/INST] b</s>", "b", "c</s>"),
    "mimics us": talk("Sentinel", "Sentinell SentinelSentinel", "b", "Sentinel"),
    "system": talk("Hello", "I am fine.", "And now?", "Now too.", system=" You are a helpful 助手. "),
    "jinja": talk("{{ messages }}", "{% for x in y %}{{ x }}{% endfor %}{# no #}"),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_ids_are_the_templates_and_mask_is_the_assistants(family, name):
    tokenizer, messages = make_tokenizer(family), CONVERSATIONS[name]
    tokens, loss_mask = encode_conversation(tokenizer, messages)
    if family == "gemma" and name == "system":  # which its template refuses
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
PIECES = st.sampled_from(["a", "Hello", " ", "\n", "😀", "你", "é", "<|im_end|>", "</s>", "1", "."])
TEXT = st.lists(PIECES, max_size=8).map("".join).filter(str.strip)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(TEXT, min_size=2, max_size=5))
def test_any_text(family, turns):
    tokenizer, messages = make_tokenizer(family), talk(*turns)
    tokens, loss_mask = encode_conversation(tokenizer, messages)
    assert tokens.tolist() == tokenizer.apply_chat_template(messages, return_dict=False)
    reference = tokenizer.apply_chat_template(
        messages, chat_template=marked_template(family), return_dict=True, return_assistant_tokens_mask=True
    )
    assert loss_mask.astype(int).tolist() == reference["assistant_masks"]


def test_one_bos(family):
    tokenizer = make_tokenizer(family)
    tokens, _ = encode_conversation(tokenizer, CONVERSATIONS["multi"])
    if tokenizer.bos_token:
        assert tokens.tolist().count(tokenizer.bos_token_id) == 1


def test_end_of_turn_is_a_target_even_where_it_is_padding_too(family):
    tokenizer = make_tokenizer(family)
    tokens, loss_mask = encode_conversation(tokenizer, CONVERSATIONS["multi"])
    ends = {"llama3": "<|eot_id|>", "chatml": "<|im_end|>", "gemma": "<end_of_turn>", "mistral": "</s>"}
    ends |= {"qwen3": ends["chatml"], "gemma3": ends["gemma"]}
    end = tokenizer.convert_tokens_to_ids(ends[family])
    assert (tokens[loss_mask] == end).sum() == 3  # one an assistant turn


def test_train_on_last(family):
    tokenizer, messages = make_tokenizer(family), CONVERSATIONS["multi"]
    everything, last = (encode_conversation(tokenizer, messages, train_on=which) for which in ("all", "last"))
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
    assert refused(tokenizer, CONVERSATIONS["open"], train_on="last").reason == "empty_mask"
    assert refused(tokenizer, talk("Hello", "")).reason == "empty_response"
    assert refused(tokenizer, talk("Hello", " \n\t")).reason == "empty_response"


def test_a_template_that_refuses():
    system, question, answer, *_ = CONVERSATIONS["system"]
    error = refused(make_tokenizer("gemma"), [system, answer, question, answer])
    assert (error.reason, error.detail) == ("template_error", "System role not supported")


def test_who_is_asked_sees_what_is_trained(family):
    """Up to the answer, the text of training is what samplers and evaluation ask with, system turn and all."""
    tokenizer, messages = make_tokenizer(family), CONVERSATIONS["system"][:3]
    tokens, loss_mask = encode_conversation(tokenizer, messages)
    asked = encode_prompt(tokenizer, messages[:-1])
    assert tokens[: loss_mask.argmax()].tolist() == asked


def test_what_the_template_writes_before_an_answer_is_a_target_if_it_is_not_asked_with():
    """So the plain generation prompt is answered at once; and so is the one without thinking, as it ends with a part of
    the target."""
    tokenizer, messages = make_tokenizer("qwen3"), CONVERSATIONS["multi"]
    tokens, mask = encode_conversation(tokenizer, messages)
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
    tokens, mask = encode_conversation(tokenizer, talk("1+1?", thoughtful[0], "Sure?", thoughtful[1]))
    assert tokenizer.decode(tokens[mask]) == "It is 2.<|im_end|>" + thoughtful[1] + "<|im_end|>"
    assert refused(tokenizer, talk("1+1?", "<think>I add.</think>It is 2.")).reason == "no_mask"


START = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
NO_MASK = {
    "drops the assistant": START + "{% if m['role'] == 'user' %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}",
    "writes it twice": START + "{{ m['content'] + '<|im_end|>' + m['content'] + '<|im_end|>' }}{% endfor %}",
    "ends no turn": START + "{{ m['content'] }}\n{% endfor %}",
    "ends turns in plain text": START + "{{ m['content'] }}### End\n<|im_end|>{% endfor %}",
    "ends no last turn": START + "{{ m['content'] }}{% if not loop.last %}<|im_end|>{% endif %}{% endfor %}",
    "counts characters": START + "{{ m['content']|length }} {{ m['content'] }}<|im_end|>{% endfor %}",
    "depends on the text": START + "{{ '!' if 'fine' in m['content'] }}{{ m['content'] }}<|im_end|>{% endfor %}",
    "rewrites": START + "{{ m['content']|upper }}<|im_end|>{% endfor %}",
}


@pytest.mark.parametrize("what", NO_MASK)
def test_a_template_that_hides_the_mask(what, monkeypatch):
    tokenizer = make_tokenizer("chatml")
    monkeypatch.setattr(tokenizer, "chat_template", NO_MASK[what])
    for name in ("single", "multi", "open"):
        assert refused(tokenizer, CONVERSATIONS[name]).reason == "no_mask"


def test_a_template_that_rewrites_the_answer(monkeypatch):
    """Thoughts of earlier turns are dropped: what is left of the answer is the target."""
    tokenizer = make_tokenizer("chatml")
    answer = "m['content'] if loop.last else m['content'].split('</think>')[-1]"
    monkeypatch.setattr(tokenizer, "chat_template", START + f"{{{{ ({answer}) + '<|im_end|>\\n' }}}}{{% endfor %}}")
    tokens, mask = encode_conversation(tokenizer, talk("a", "hm</think>Hello", "b", "x</think>I am"))
    assert tokenizer.decode(tokens[mask]) == "Hello<|im_end|>x</think>I am<|im_end|>"


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
        tokens, loss_mask = encode_conversation(tokenizer, messages)
        reference = tokenizer.apply_chat_template(
            messages, chat_template=marked_template(family), return_dict=True, return_assistant_tokens_mask=True
        )
        assert reference["input_ids"] == tokens.tolist()
        assert reference["assistant_masks"] == loss_mask.astype(int).tolist()
