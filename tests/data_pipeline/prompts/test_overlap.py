"""What counts as the same text: near duplicates, and words in a row of evaluation sets."""

import random

import pytest

from data_pipeline.prompts.overlap import SHINGLE, EvaluationNgrams, NearDuplicates, tokens

WORDS = [f"word{n}" for n in range(500)]


def shingles(text: str) -> set[tuple[str, ...]]:
    found = tokens(text)
    return {tuple(found[n : n + SHINGLE]) for n in range(max(1, len(found) + 1 - SHINGLE))}


def test_near_duplicates_are_those_that_comparing_all_pairs_finds():
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(3, 150))) for _ in range(150)]
    for text in texts[:150]:
        found = text.split()
        for _ in range(rng.randint(1, 4)):
            found[rng.randrange(len(found))] = "changed"
        texts.append(" ".join(found))
    rng.shuffle(texts)
    near = NearDuplicates(0.8)
    kept: dict[str, set[tuple[str, ...]]] = {}
    agree = 0
    for number, text in enumerate(texts):
        name, mine = str(number), shingles(text)
        expected = {other for other, theirs in kept.items() if len(mine & theirs) >= 0.8 * len(mine | theirs)}
        other = near.add(name, text)
        agree += (other is None) == (not expected)
        # A pair may be missed, but what is said to be near is near.
        assert other is None or other in expected
        if other is None:
            kept[name] = mine
    assert agree >= 298 and 200 < len(kept) < 280


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is 3 + 4?", "what is 3+4 ?", True),
        ("What is 3 + 4?", "What is 3 - 4?", False),
        ("What is 3 + 4?", "What is 3 + 5?", False),
        ("请介绍中国首都北京的历史和著名的旅游景点", "请介绍中国首都北京的历史和著名的旅游景点。", True),
        ("请介绍中国首都北京的历史和著名的旅游景点", "请介绍法国首都巴黎的美食和有名的博物馆", False),
    ],
)
def test_signs_and_characters_count(one: str, other: str, same: bool):
    near = NearDuplicates(0.8)
    assert near.add("one", one) is None
    assert near.add("other", other) == ("one" if same else None)


def test_evaluation_texts_are_found_by_words_in_a_row():
    evaluation = EvaluationNgrams(13)
    text = "Janet’s ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes muffins."
    evaluation.add("GSM8K", [text, "你好吗", "Who?"])
    evaluation.add("later", [text, "A B C"])
    assert evaluation.find(f"Prove: {text.upper()}!!") == (
        "GSM8K",
        "janet s ducks lay 16 eggs per day she eats three for breakfast",
    )
    assert evaluation.find("Ducks lay 16 eggs per day. She eats three for breakfast") is None
    assert evaluation.find("who?") == ("GSM8K", "who ?")
    assert evaluation.find("who is it?") is None
    assert evaluation.find("a b c") == ("later", "a b c")
    assert evaluation.find("") is None
