"""Items that training prompts held, against a plain reading of the definition."""

from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.benchmarks.contamination import RUN, held
from data_pipeline.prompts.overlap import tokens, words

TEXTS = st.lists(st.sampled_from("abc"), max_size=RUN + 4).map(" ".join)


def plain(item: str, prompt: str) -> bool:
    mine, theirs = words(item), words(prompt)
    if len(mine) < RUN:
        return bool(mine) and len(theirs) < RUN and tokens(item) == tokens(prompt)
    runs = {tuple(theirs[start : start + RUN]) for start in range(len(theirs) - RUN + 1)}
    return any(tuple(mine[start : start + RUN]) in runs for start in range(len(mine) - RUN + 1))


@settings(deadline=None)
@given(st.dictionaries(st.text("xyz", min_size=1, max_size=3), TEXTS, max_size=4), st.lists(TEXTS, max_size=4))
def test_as_defined(items, prompts):
    assert held(items, prompts) == {name for name, text in items.items() if any(plain(text, each) for each in prompts)}


def test_two_items_with_one_run():
    run = " ".join(str(number) for number in range(RUN))
    assert held({"a": f"x {run}", "b": f"{run} y", "c": "0 1 2"}, [f"Say: {run}!"]) == {"a", "b"}
