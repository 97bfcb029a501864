"""Values as JSON, for two processes that do not trust each other.

A message is a table of nodes, so that shared and cyclic values keep their shape and depth costs no recursion. It can
hold the plain types below and objects of classes that both sides define; for anything else the caller makes a node (a
handle). Subclasses count as the plain type that they extend, read by its own methods: their overrides are not called.
"""

import builtins
import collections
import datetime
import decimal
import fractions
from collections.abc import Callable
from typing import Any

MAX_NODES = 2_000_000
MAX_NESTED_TUPLES = 200

Ref = Any
"""An atom itself (None, bool, int, float, str), or `[index]` of a node."""

_SEQUENCES: dict[str, Any] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": collections.deque,
}
_MAPPINGS: dict[str, type] = {
    "Counter": collections.Counter,
    "defaultdict": collections.defaultdict,
    "OrderedDict": collections.OrderedDict,
    "dict": dict,
}
_SHELLS = {"list": list, "set": set, **_MAPPINGS}
_ISO: dict[str, type] = {"datetime": datetime.datetime, "date": datetime.date, "time": datetime.time}
_EXACT_INT = 2**63
_BUILTIN_TYPES = {name: value for name, value in vars(builtins).items() if isinstance(value, type)}
_BUILTIN_NAMES = {value: name for name, value in _BUILTIN_TYPES.items()}


class Malformed(Exception):
    """A message that an honest other side never sends."""


class Encoder:
    """Writes values into one table of nodes.

    Args:
      classes: names of classes that the other side has too; their objects travel with all their attributes.
      foreign: turns any other object into a node, or raises.
      known: objects of an earlier message, by identity, that the other side shall update in place.
    """

    def __init__(self, classes: frozenset[str], foreign: Callable[[Any], list], known: dict[int, int] | None = None):
        self._classes, self._foreign, self._known = classes, foreign, known or {}
        self.nodes: list[Any] = []
        self.objects: list[Any] = []  # Keeps what `_index` names by identity alive.
        self._index: dict[int, int] = {}

    def add(self, value: Any) -> Ref:
        """The reference of a value, whose nodes are now in the table."""
        done = len(self.nodes)
        ref = self._ref(value)
        while done < len(self.nodes):
            node = self._node(self.objects[done])
            at = self._known.get(id(self.objects[done]))
            self.nodes[done] = node if at is None else ["at", at, node]
            done += 1
        return ref

    def _ref(self, value: Any) -> Ref:
        kind = type(value)
        if value is None or kind in (bool, str, float) or (kind is int and -_EXACT_INT < value < _EXACT_INT):
            return value
        index = self._index.get(id(value))
        if index is None:
            index = self._index[id(value)] = len(self.nodes)
            self.nodes.append(None)
            self.objects.append(value)
            if index >= MAX_NODES:
                raise Malformed("too many values")
        return [index]

    def _node(self, value: Any) -> list:
        kind = type(value)
        for name, plain in _SEQUENCES.items():
            if issubclass(kind, plain):
                items = [self._ref(item) for item in plain.__iter__(value)]
                if name == "deque":
                    return [name, items, collections.deque.maxlen.__get__(value)]
                fields = getattr(kind, "_fields", None)
                if name == "tuple" and type(fields) is tuple and len(fields) == len(items):
                    return ["named", kind.__name__, list(fields), items]
                return [name, items]
        for name, plain in _MAPPINGS.items():
            if issubclass(kind, plain):
                return [name, [[self._ref(key), self._ref(item)] for key, item in dict.items(value)]]
        if issubclass(kind, int):
            return ["int", hex(int.__index__(value))]
        if issubclass(kind, float):
            return ["float", float.__float__(value)]
        if issubclass(kind, str):
            return ["str", str.__str__(value)]
        if kind in (bytes, bytearray):
            return [kind.__name__, value.hex()]
        if kind is complex:
            return ["complex", value.real, value.imag]
        if kind is range:
            return ["range", self._ref(value.start), self._ref(value.stop), self._ref(value.step)]
        if kind is fractions.Fraction:
            return ["Fraction", hex(value.numerator), hex(value.denominator)]
        if kind is decimal.Decimal:
            return ["Decimal", str(value)]
        for name, plain in _ISO.items():
            if kind is plain:
                return [name, value.isoformat()]
        if kind is datetime.timedelta:
            return ["timedelta", value.days, value.seconds, value.microseconds]
        if value is Ellipsis or value is NotImplemented:
            return [str(value)]
        if kind is type and value in _BUILTIN_NAMES:
            return ["type", _BUILTIN_NAMES[value]]
        if kind.__name__ in self._classes and type(getattr(value, "__dict__", None)) is dict:
            attributes = [[name, self._ref(item)] for name, item in value.__dict__.items() if type(name) is str]
            return ["object", kind.__name__, attributes]
        return self._foreign(value)


class Decoder:
    """Reads a table of nodes.

    Args:
      nodes: as received; not trusted in any way.
      classes: gives the class of objects by its name; None for an unknown one.
      foreign: makes the object of a node of any other kind.
      known: the objects of the earlier message that "at" counts in; only these change.

    Raises:
      Malformed: the table is not what an `Encoder` writes.
    """

    def __init__(
        self,
        nodes: Any,
        classes: Callable[[str], type | None],
        foreign: Callable[[list], Any],
        known: list[Any] | None = None,
    ):
        if type(nodes) is not list or len(nodes) > MAX_NODES:
            raise Malformed("no table of nodes")
        self._classes, self._foreign, self._known = classes, foreign, known or []
        self._nodes: list[list] = []
        self.objects: list[Any] = []
        self._made: list[bool] = []
        try:
            self._read(nodes)
        except Malformed:
            raise
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            raise Malformed(f"{type(error).__name__}: {error}") from None

    def get(self, ref: Ref) -> Any:
        if type(ref) is list:
            (index,) = ref
            if type(index) is not int or not 0 <= index < len(self._nodes):
                raise Malformed("reference to no node")
            return self._make(index, 0)
        if ref is not None and type(ref) not in (bool, int, float, str):
            raise Malformed("no reference")
        return ref

    def _read(self, nodes: list) -> None:
        shells: list[Any] = []
        for node in nodes:
            shell = None
            if node[0] == "at":
                _, at, node = node
                if type(at) is not int or not 0 <= at < len(self._known):
                    raise Malformed("update of no value")
                shell = self._known[at]
                if type(shell).__name__ != (node[1] if node[0] == "object" else node[0]):
                    # The other side can change an object, but not its type.
                    raise Malformed("update with another type")
            shells.append(shell)
            self._nodes.append(node)
        for shell, node in zip(shells, self._nodes, strict=True):
            made = self._shell(node) if shell is None else shell
            self.objects.append(made)
            self._made.append(made is not None)
        for index in range(len(self._nodes)):
            self._make(index, 0)
        # Sets and mappings last: the hashes of their keys and elements may need attributes.
        for late in (False, True):
            for index, node in enumerate(self._nodes):
                if (node[0] == "set" or node[0] in _MAPPINGS) == late:
                    self._fill(self.objects[index], node)

    def _shell(self, node: list) -> Any:
        kind = node[0]
        if kind == "deque":
            return collections.deque(maxlen=node[2])
        if kind in _SHELLS:
            return _SHELLS[kind]()
        if kind == "object":
            cls = self._classes(node[1])
            if cls is None:
                raise Malformed("object of no known class")
            return object.__new__(cls)
        return None

    def _make(self, index: int, depth: int) -> Any:
        """The object of a node; an immutable one is built from its parts, and so cannot contain itself."""
        if self._made[index]:
            return self.objects[index]
        if depth > MAX_NESTED_TUPLES:
            raise Malformed("tuples nested too deep")
        self.objects[index] = self._value(self._nodes[index], depth)
        self._made[index] = True
        return self.objects[index]

    def _part(self, ref: Ref, depth: int) -> Any:
        return self._make(ref[0], depth + 1) if type(ref) is list else self.get(ref)

    def _value(self, node: list, depth: int) -> Any:
        match node:
            case ["tuple", list(items)]:
                return tuple(self._part(item, depth) for item in items)
            case ["frozenset", list(items)]:
                return frozenset(self._part(item, depth) for item in items)
            case ["named", str(name), list(fields), list(items)]:
                return collections.namedtuple(name, fields)(*(self._part(item, depth) for item in items))
            case ["int", str(text)]:
                return int(text, 16)
            case ["float", float(number)]:
                return number
            case ["str", str(text)]:
                return text
            case ["bytes", str(text)]:
                return bytes.fromhex(text)
            case ["bytearray", str(text)]:
                return bytearray.fromhex(text)
            case ["complex", float(real), float(imaginary)]:
                return complex(real, imaginary)
            case ["range", start, stop, step]:
                return range(self._part(start, depth), self._part(stop, depth), self._part(step, depth))
            case ["Fraction", str(numerator), str(denominator)]:
                return fractions.Fraction(int(numerator, 16), int(denominator, 16))
            case ["Decimal", str(text)]:
                return decimal.Decimal(text)
            case ["datetime" | "date" | "time" as kind, str(text)]:
                return _ISO[kind].fromisoformat(text)  # type: ignore[attr-defined]
            case ["timedelta", int(days), int(seconds), int(microseconds)]:
                return datetime.timedelta(days, seconds, microseconds)
            case ["Ellipsis"]:
                return Ellipsis
            case ["NotImplemented"]:
                return NotImplemented
            case ["type", str(name)]:
                return _BUILTIN_TYPES[name]
            case _:
                return self._foreign(node)

    def _fill(self, value: Any, node: list) -> None:
        kind = node[0]
        if kind in ("list", "deque"):
            items = [self.get(item) for item in node[1]]
            value.clear()
            value.extend(items)
        elif kind == "set":
            items = [self.get(item) for item in node[1]]
            value.clear()
            value.update(items)
        elif kind in _MAPPINGS:
            pairs = [(self.get(key), self.get(item)) for key, item in node[1]]
            dict.clear(value)
            for key, item in pairs:
                dict.__setitem__(value, key, item)
        elif kind == "object":
            attributes = {name: self.get(item) for name, item in node[2]}
            if any(callable(getattr(type(value), name, None)) for name in attributes):
                # It would replace the method, `__eq__` for example, with which the tests compare the object.
                raise Malformed("an attribute hides a method")
            value.__dict__.clear()
            value.__dict__.update(attributes)


def changing(objects: list[Any], classes: frozenset[str]) -> dict[int, int]:
    """Of a message's objects, those that a call may change: identity -> index."""
    kinds = (list, set, dict, collections.deque)
    return {
        id(value): index
        for index, value in enumerate(objects)
        if type(value) in (*kinds, *_MAPPINGS.values()) or type(value).__name__ in classes
    }
