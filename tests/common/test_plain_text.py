"""A text that spells special tokens stays text, for trainer, samplers and reward models alike."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fusejax.common import plain_text
from fusejax.common.chat_template import TemplateError, encode, encode_prompt
from fusejax.common.plain_text import SpelledError, hide, tokenize
from fusejax.data.chat import encode_conversation, encode_conversations
from tests.data.families import FAMILIES, make_tokenizer

ENDS = {
    "llama3": "<|eot_id|>",
    "chatml": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "mistral": "</s>",
    "qwen3": "<|im_end|>",
    "gemma3": "<end_of_turn>",
}
NAMES = sorted(
    {str(t) for family in FAMILIES for t in make_tokenizer(family).added_tokens_decoder.values() if t.special}
)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def special_counts(tokenizer: PreTrainedTokenizerFast, tokens: list[int]) -> list[int]:
    return [list(tokens).count(i) for i, token in tokenizer.added_tokens_decoder.items() if token.special]


def test_an_answer_that_spells_the_end_does_not_end_there(family):
    tokenizer, name = make_tokenizer(family), ENDS[family]
    messages = talk(f"What is {name}?", f"It is {name}, and then {name}{name}\n")
    found = encode_conversation(tokenizer, messages)
    assert found.changes == {"spelled"}
    # Exactly one end is a target: the template's.
    assert found.tokens[found.loss_mask].tolist().count(tokenizer.convert_tokens_to_ids(name)) == 1
    assert tokenizer.decode(found.tokens[found.loss_mask]).count(name) == 4
    benign = encode_conversation(tokenizer, talk("What is it?", "It is it.")).tokens
    assert special_counts(tokenizer, found.tokens.tolist()) == special_counts(tokenizer, benign.tolist())


def test_text_is_tokenised_as_if_the_token_were_none(family):
    """The tokens of the text are those that `split_special_tokens` gives, with all the rules of the tokenizer."""
    tokenizer, name = make_tokenizer(family), ENDS[family]
    found = encode_conversation(tokenizer, talk("Hi", f"a {name} b"))
    end = tokenizer.convert_tokens_to_ids(name)
    (position,) = np.flatnonzero((found.tokens == end) & found.loss_mask)
    content = found.tokens[found.loss_mask.argmax() : position].tolist()
    prefix = "<think>\n\n</think>\n\n" if family == "qwen3" else " " if family == "mistral" else ""
    # A first piece of a text alone would get SentencePiece's leading space, so it stands behind a special token.
    alone = tokenizer.backend_tokenizer
    alone.encode_special_tokens = True
    try:
        expected = alone.encode(f"{prefix}a {name} b", add_special_tokens=False).ids
    finally:
        alone.encode_special_tokens = False
    if family == "mistral":  # whose tokenizer writes a space of its own at the beginning of a text
        expected = expected[1:] if len(expected) > len(content) else expected
    assert content == expected


PIECES = st.sampled_from([*NAMES, *(name[:-1] for name in NAMES), "a", " ", "\n", "😀", "你", "x<", "|>"])
TEXT = st.lists(PIECES, min_size=1, max_size=6).map("".join).filter(str.strip)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(question=TEXT, answer=TEXT)
def test_special_tokens_are_the_templates_whatever_is_written(family, question, answer):
    tokenizer = make_tokenizer(family)
    found = encode_conversation(tokenizer, talk(question, answer))
    benign = encode_conversation(tokenizer, talk("a", "b"))
    assert special_counts(tokenizer, found.tokens.tolist()) == special_counts(tokenizer, benign.tokens.tolist())
    # Nothing is lost either: the text is that of the template.
    text = tokenizer.apply_chat_template(talk(question, answer), tokenize=False)
    assert tokenizer.decode(found.tokens).replace(" ", "") == text.replace(" ", "")
    # Samplers ask with the tokens that training goes on from.
    asked = encode_prompt(tokenizer, talk(question, answer)[:1])
    start = int(found.loss_mask.argmax())
    assert found.tokens[:start].tolist() == asked.tokens[:start]
    assert start == len(asked.tokens) or "straddled" in found.changes  # a line break at its beginning


def test_a_text_without_such_names_goes_through_unchanged(family):
    tokenizer, messages = make_tokenizer(family), talk("<|im_end |>", "</ s> and \U000f0000 \U00100003")
    assert hide(tokenizer, messages) == (messages, False)
    assert encode(tokenizer, messages).tokens == tokenizer.apply_chat_template(messages, return_dict=False)


def test_what_marks_turns_is_special_even_if_the_tokenizer_does_not_say_so():
    """So is `<｜User｜>` in DeepSeek's tokenizers; but what marks reasoning is part of answers."""
    tokenizer = copy.deepcopy(make_tokenizer("qwen3"))
    tokenizer.add_tokens([AddedToken("<|turn|>", special=False, normalized=False)])
    turn, think = tokenizer.convert_tokens_to_ids(["<|turn|>", "<think>"])
    tokenizer.chat_template = "{% for m in messages %}<|turn|>{{ m['content'] }}<|im_end|>{% endfor %}"
    found = encode_conversation(tokenizer, talk("<|turn|>?", "<think>\nIt is <|turn|>.\n</think>\n\n2"))
    assert found.changes == {"spelled"} and found.tokens.tolist().count(turn) == 2 and think in found.tokens


CHATML = """\
{% for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def wrapped(model: models.Model, normalizer: normalizers.Normalizer | None = None, **flags: bool):
    """A ChatML tokenizer around a model; the flags are those of its special tokens."""
    backend = Tokenizer(model)
    if isinstance(model, models.BPE):
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        backend.train_from_iterator(["<|im_end|>"] * 50, trainer)
    if normalizer:
        backend.normalizer = normalizer
    names = ("<|im_start|>", "<|im_end|>")
    backend.add_special_tokens([AddedToken(name, special=True, **{"normalized": False, **flags}) for name in names])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def unigram() -> models.Unigram:
    letters = sorted(set("<>|_?\nabcdefghijklmnopqrstuvwxyz "))
    return models.Unigram([("<unk>", 0.0), ("<|im_end|>", -1.0), *((letter, -5.0) for letter in letters)], unk_id=0)


def test_line_breaks_are_no_special_tokens_where_they_are_added_ones():
    """As in Gemma's tokenizers, whose templates write them around turns, too."""
    tokenizer = copy.deepcopy(make_tokenizer("gemma"))
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in ("\n", "\n\n")])
    found = encode_conversation(tokenizer, talk("Hi\nyou", "a\n\nb\nc"))
    assert not found.changes
    assert found.tokens.tolist() == tokenizer.apply_chat_template(talk("Hi\nyou", "a\n\nb\nc"), return_dict=False)
    assert encode_conversation(tokenizer, talk("Hi\n<eos>", "a\n\nb")).changes == {"spelled"}


def test_what_thousands_of_special_tokens_begin_with_is_compared_once():
    tokenizer = copy.deepcopy(make_tokenizer("chatml"))
    names = [f"<unused{i}>" for i in range(6000)]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    text = "if a < b and <unused> < <div>\n"
    assert hide(tokenizer, talk(text, text)) == (talk(text, text), False)
    assert plain_text._special(tokenizer, tokenizer.chat_template).any_name.pattern.count("unused") == 1
    hidden, spelled = hide(tokenizer, talk("<unused12><unused123>", "<unused5999>"))
    assert spelled and [len(set(turn["content"])) for turn in hidden] == [2, 1]


def test_names_that_the_model_itself_could_make_stay_text():
    merged = wrapped(models.BPE())  # which merges these letters to one token
    assert merged.convert_tokens_to_ids("<|im_end|>") < 300
    for tokenizer in (merged, wrapped(unigram())):
        found = encode_conversation(tokenizer, talk("a <|im_end|> b", "b<|im_end|>"))
        assert found.changes == {"spelled"} and found.tokens.tolist().count(tokenizer.eos_token_id) == 2


@pytest.mark.parametrize(
    ("normalizer", "text"),
    [(normalizers.NFKC(), "b ＜|im_end|＞ b"), (normalizers.Lowercase(), "b <|IM_END|> b")],
)
@pytest.mark.parametrize("normalized", [True, False])
def test_a_text_that_spells_a_name_once_normalised_stays_text(normalizer, text, normalized):
    tokenizer = wrapped(unigram(), normalizer, normalized=normalized)
    found = encode_conversation(tokenizer, talk("a", text))
    assert found.changes == {"spelled"} and found.tokens.tolist().count(tokenizer.eos_token_id) == 2


def test_special_tokens_that_do_not_go_by_another_name_are_missed():
    """BERT's normaliser takes private characters out of a text."""
    tokenizer = wrapped(unigram(), normalizers.BertNormalizer(), normalized=True)
    assert not encode_prompt(tokenizer, talk("a", "")[:1]).changes
    with pytest.raises(TemplateError, match="do not keep it as text"):
        encode_prompt(tokenizer, talk("<|im_end|>", "")[:1])


def test_a_tokenizer_that_cannot_be_renamed_is_tried_once(monkeypatch):
    tokenizer, calls = wrapped(unigram()), []

    def broken(data) -> str:
        calls.append(data)
        return "{"

    monkeypatch.setattr(plain_text, "json", SimpleNamespace(loads=json.loads, dumps=broken))
    results = encode_conversations(tokenizer, [talk("a", "<|im_end|>")] * 3 + [talk("a", "b")])
    said = "special_text: a text spells a special token, and cannot be kept as text: "
    assert all(str(result).startswith(said) for result in results[:3])
    assert not results[3].changes and len(calls) == 1


def test_a_tokenizer_with_several_templates_uses_its_default():
    tokenizer = copy.deepcopy(make_tokenizer("chatml"))
    wanted = encode(tokenizer, talk("<|im_end|>", "a"))
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "tools"}
    assert encode(tokenizer, talk("<|im_end|>", "a")) == wanted


def test_what_cannot_be_kept_is_refused(tokenizer_of_chatml, monkeypatch):
    with pytest.raises(SpelledError, match="private use"):
        hide(tokenizer_of_chatml, talk("\U00100000", "<|im_end|>"))
    with pytest.raises(TemplateError, match="private use"):
        encode_prompt(tokenizer_of_chatml, talk("<|im_end|> \U000f0001", "")[:1])
    monkeypatch.setattr(plain_text, "_END", plain_text._HIDDEN + 1)
    with pytest.raises(SpelledError, match="one of 2 special tokens, which are too many"):
        hide(tokenizer_of_chatml, talk("Hi", "<|im_end|>"))
    monkeypatch.undo()
    hidden, _ = hide(tokenizer_of_chatml, talk("Hi", "<|im_end|>"))
    with pytest.raises(SpelledError, match="rewrites"):
        tokenize(tokenizer_of_chatml, [hidden[1]["content"][:-1]], [True])


@pytest.fixture
def tokenizer_of_chatml() -> PreTrainedTokenizerFast:
    return make_tokenizer("chatml")
