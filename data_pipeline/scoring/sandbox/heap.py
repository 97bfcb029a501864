"""Objects that examiner and program both have, each its own copy, kept alike from message to message.

What the tests hand over and what the program returns stays one object to both: its identity is kept, and a change by
either side reaches the other with the next message, as if there were one heap.
"""

import collections
import sys
from collections.abc import Callable
from operator import is_
from typing import Any

MAX_ITEMS = 20_000
"""Of containers that hold more than this together, the oldest are copies from then on: each call looks at all."""
EXAMINER, PROGRAM = 1, -1
"""The sides; each numbers what it sends first, upwards or downwards."""


class Heap:
    """One side's copies, by the numbers that both sides know them by."""

    modules = frozenset(sys.modules)
    """Loaded on both sides: classes of these need only be named. The zygote, which loads more, sets it anew."""

    def __init__(self, side: int):
        self.side = side
        self.objects: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}
        self._contents: dict[int, tuple] = {}
        self._next = side

    def has(self, module: Any, name: Any, value: Any) -> bool:
        """Whether a module that both sides have loaded holds this value under that name."""
        return module in self.modules and getattr(sys.modules.get(module), str(name), None) is value

    def number(self, value: Any) -> int | None:
        return self._numbers.get(id(value))

    def reserve(self, count: int) -> None:
        """Takes the next numbers, from `base` on."""
        self._next += self.side * count

    @property
    def base(self) -> int:
        return self._next

    def exchanged(self, number: int, value: Any) -> None:
        """Both sides have the value now, and its contents as they are at this moment."""
        self.objects[number] = value
        self._numbers[id(value)] = number
        self._contents[number] = contents(value)

    def changed(self) -> list[Any]:
        """What has other contents than when both sides last had the same."""
        return [value for number, value in self.objects.items() if not _same(contents(value), self._contents[number])]

    def forget(self, numbers: list[int]) -> None:
        for number in numbers:
            del self._numbers[id(self.objects.pop(number))], self._contents[number]

    def unused(self) -> list[int]:
        """Forgets what nobody else here refers to, and the oldest where there is too much; returns the numbers.

        Not what has changed: the other side has to hear of that first.
        """
        gone = []
        for number in list(self.objects):
            value = self.objects[number]
            # `objects`, `value` and the argument of `getrefcount` refer to it.
            if sys.getrefcount(value) <= 3 and _same(contents(value), self._contents[number]):
                self.forget([number])
                gone.append(number)
        excess = len(self.objects) + sum(map(len, self._contents.values())) - MAX_ITEMS
        for number in list(self.objects):
            if excess <= 0:
                break
            excess -= 1 + len(self._contents[number])
            self.forget([number])
            gone.append(number)
        return gone


_CONTENTS: dict[type, Callable[[Any], tuple]] = {
    **dict.fromkeys((list, set, collections.deque, bytearray), tuple),
    **dict.fromkeys(
        (dict, collections.Counter, collections.defaultdict, collections.OrderedDict),
        lambda value: (*value, *value.values()),
    ),
    **dict.fromkeys((tuple, frozenset), lambda value: ()),
    collections.ChainMap: lambda value: (value.maps,),
}


def contents(value: Any) -> tuple:
    """What a change of the value changes; nothing for one that cannot change."""
    read = _CONTENTS.get(type(value))
    if read is not None:
        return read(value)
    return () if isinstance(value, tuple) else (*value.__dict__, *value.__dict__.values())


def _same(old: tuple, new: tuple) -> bool:
    return len(old) == len(new) and all(map(is_, old, new))
