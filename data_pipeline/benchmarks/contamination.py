"""Items that the training prompts held: 13 words in a row in common, or all of a shorter text.

The measure is that of the stage `prompts` (Brown et al. 2020, appendix C, take 13 words, too), turned round: there, a
training prompt that overlaps is left out; here, an item that was trained on is counted.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from data_pipeline.prompts.overlap import tokens, words

RUN = 13
"""Words in a row."""


def held(items: Mapping[str, str], prompts: Iterable[str]) -> set[str]:
    """The names of the items whose texts the prompts hold part of.

    Args:
      items: name -> text.
      prompts: texts; read once.

    >>> held({"a": "What is 3 + 4?", "b": "What is 3 - 4?"}, ["what is 3+4?"])
    {'a'}
    """
    named: dict[str, list[str]] = defaultdict(list)
    short: dict[str, list[str]] = defaultdict(list)
    for name, text in items.items():
        found = words(text)
        if len(found) < RUN:
            short[" ".join(tokens(text))].append(name)
        for run in _runs(found):
            named[run].append(name)
    short.pop("", None)
    seen: set[str] = set()
    for prompt in prompts:
        found = words(prompt)
        if len(found) < RUN:
            seen.update(short.get(" ".join(tokens(prompt)), ()))
        for run in _runs(found):
            if run in named:
                seen.update(named.pop(run))
    return seen


def _runs(found: list[str]) -> Iterable[str]:
    return (" ".join(found[start : start + RUN]) for start in range(len(found) - RUN + 1))
