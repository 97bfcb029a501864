"""Texts that end an answer, for backends that decode tokens themselves."""

import operator
from collections.abc import Sequence


def before_stop(text: str, stop: Sequence[str]) -> str | None:
    """What an answer says before the stop text that is complete first, as in vLLM; None where there is none.

    Of two that end at the same place, the first in `stop` counts.

    >>> before_stop("one and two", ("two", "and tw", "and")), before_stop("one", ("two",))
    ('one ', None)
    """
    ends = [(start + len(each), start) for each in stop if (start := text.find(each)) >= 0]
    return text[: min(ends, key=operator.itemgetter(0))[1]] if ends else None
