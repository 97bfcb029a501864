"""Values as JSON, for two processes that do not trust each other.

A message is a table of nodes, so that shared and cyclic values keep their shape and depth costs no recursion. It can
hold the plain types below, exceptions of Python's own classes, and objects of classes that both sides define. NumPy's
usual scalars become Python's. For anything else, an object of a subclass of a plain type too, the caller makes a node:
the other side gets no copy.
"""

import builtins
import collections
import collections.abc
import contextlib
import datetime
import decimal
import enum
import fractions
import functools
import gc
import numbers
import sys
import types
from collections.abc import Callable
from typing import Any

from .heap import Heap
from .stand_ins import of

MAX_NODES = 2_000_000
MAX_NESTED_TUPLES = 200
MAX_CAUSES = 20

Ref = Any
"""An atom itself (None, bool, int, float, str), or `[index]` of a node."""

_SEQUENCES: dict[type, str] = {
    list: "list",
    tuple: "tuple",
    set: "set",
    frozenset: "frozenset",
    collections.deque: "deque",
}
_MAPPINGS: dict[type, str] = {
    dict: "dict",
    collections.Counter: "Counter",
    collections.defaultdict: "defaultdict",
    collections.OrderedDict: "OrderedDict",
}
_FILLED: dict[str, type] = {
    name: kind for kind, name in (*_SEQUENCES.items(), *_MAPPINGS.items()) if name not in ("tuple", "frozenset")
}
_SHARED = frozenset([*_SEQUENCES.values(), *_MAPPINGS.values(), "named", "bytearray", "ChainMap", "object"])
"""Nodes of objects that both sides keep; see `heap`."""
_CHANGING = _SHARED - {"tuple", "frozenset", "named"}
_VIEWS = {
    type(getattr(mapping, name)()): name
    for mapping in (dict[Any, Any](), collections.OrderedDict[Any, Any]())
    for name in ("keys", "values", "items")
}
_ISO: dict[type, str] = {datetime.datetime: "datetime", datetime.date: "date", datetime.time: "time"}
_ISO_TYPES: dict[str, Any] = {name: kind for kind, name in _ISO.items()}
_EXACT_INT = 2**63
BUILTIN_TYPES = {
    prefix + name: value
    for prefix, module in (("types.", types), ("numbers.", numbers), ("abc.", collections.abc), ("", builtins))
    for name, value in vars(module).items()
    if isinstance(value, type)
}
BUILTIN_NAMES = {value: name for name, value in BUILTIN_TYPES.items()}
_PLAIN = (
    *_SEQUENCES, *_MAPPINGS, *_ISO, collections.ChainMap, datetime.timedelta, decimal.Decimal, fractions.Fraction,
)  # fmt: skip
COPIED = frozenset([bool, int, float, str, bytes, bytearray, complex, range, slice, type, type(None), *_PLAIN])
"""Types whose objects always travel as copies."""
_MEMBERS = (types.MemberDescriptorType, types.GetSetDescriptorType)
_NAMEDTUPLE = frozenset(vars(collections.namedtuple("P", ""))) | {"__annotations__", "__orig_bases__"}


class Malformed(Exception):
    """A message that an honest other side never sends."""


class Encoder:
    """Writes values into one table of nodes.

    Args:
      heap: what both sides have already; gets what is written.
      classes: names of classes that the other side has too; their objects travel with all their attributes.
      foreign: turns any other object into a node, or raises; it may use `ref` for parts.
    """

    def __init__(self, heap: Heap, classes: frozenset[str], foreign: Callable[[Any, "Encoder"], list]):
        self._heap, self._classes, self._foreign = heap, classes, foreign
        self.nodes: list[Any] = []
        self._objects: list[Any] = []  # Keeps what `_index` names by identity alive.
        self._index: dict[int, int] = {}
        self._depths: dict[int, int] = {}
        """Of exceptions: how many others they are the causes of, one of another."""

    def message(self, *values: Any) -> dict[str, Any]:
        """The references of the values, the nodes, and among these whatever changed since the last message."""
        changed = self._heap.changed()
        stale = frozenset(map(id, changed))
        base = self._heap.base
        done = 0
        refs = [self.ref(value) for value in values]
        for value in changed:
            self.ref(value)
        while done < len(self._objects):
            self.nodes[done] = self._shared(done, base, stale)
            done += 1
        self._heap.reserve(len(self.nodes))
        return {"base": base, "refs": refs, "nodes": self.nodes}

    def _shared(self, index: int, base: int, stale: frozenset[int]) -> list:
        value = self._objects[index]
        number = self._heap.number(value)
        if number is not None and id(value) not in stale:
            return ["at", number]
        node = self._node(value)
        if node[0] in _SHARED:
            self._heap.exchanged(base + self._heap.side * index if number is None else number, value)
        return node if number is None else ["at", number, node]

    def ref(self, value: Any) -> Ref:
        kind = type(value)
        if value is None or kind in (bool, str, float) or (kind is int and -_EXACT_INT < value < _EXACT_INT):
            return value
        if kind in _numpy_scalars():
            return self.ref(value.item())
        index = self._index.get(id(value))
        if index is None:
            index = self._index[id(value)] = len(self.nodes)
            self.nodes.append(None)
            self._objects.append(value)
            if index >= MAX_NODES:
                raise Malformed("too many values")
        return [index]

    def _node(self, value: Any) -> list:
        kind = type(value)
        name = _SEQUENCES.get(kind)
        if name is not None:
            items = [self.ref(item) for item in value]
            return [name, items, value.maxlen] if name == "deque" else [name, items]
        name = _MAPPINGS.get(kind)
        if name is not None:
            pairs = [[self.ref(key), self.ref(item)] for key, item in value.items()]
            return [name, pairs, self.ref(value.default_factory)] if name == "defaultdict" else [name, pairs]
        if of(value) is not None:
            return self._foreign(value, self)
        return self._scalar(value, kind) or self._described(value, kind) or self._foreign(value, self)

    def _scalar(self, value: Any, kind: type) -> list | None:
        if kind is int:
            return ["int", hex(value)]
        if kind in (bytes, bytearray):
            return [kind.__name__, value.hex()]
        if kind is complex:
            return ["complex", value.real, value.imag]
        if kind is range:
            return ["range", self.ref(value.start), self.ref(value.stop), self.ref(value.step)]
        if kind is slice:
            return ["slice", self.ref(value.start), self.ref(value.stop), self.ref(value.step)]
        if kind is fractions.Fraction:
            return ["Fraction", hex(value.numerator), hex(value.denominator)]
        if kind is decimal.Decimal:
            return ["Decimal", str(value)]
        if kind in _ISO and not getattr(value, "fold", 0):
            zone = getattr(value, "tzinfo", None)
            if zone is None or (type(zone) is datetime.timezone and zone.tzname(None).startswith("UTC")):
                return [_ISO[kind], value.isoformat()]
        if kind is datetime.timedelta:
            return ["timedelta", value.days, value.seconds, value.microseconds]
        if value is Ellipsis or value is NotImplemented:
            return [str(value)]
        return None

    def _described(self, value: Any, kind: type) -> list | None:
        """A node of what is more than a value: a view, a class, an exception, an object of a class of both sides."""
        if kind in _VIEWS:
            (mapping,) = gc.get_referents(value)
            return ["view", _VIEWS[kind], self.ref(mapping)]
        if kind is collections.ChainMap and type(value.maps) is list and all(type(m) in _MAPPINGS for m in value.maps):
            return ["ChainMap", self.ref(value.maps)]
        if isinstance(value, type):
            return self._class(value)
        if issubclass(kind, tuple) and _is_namedtuple(kind):
            return ["named", self.ref(kind), [self.ref(item) for item in tuple.__iter__(value)]]
        if issubclass(kind, BaseException) and self._class(kind) is not None:
            return self._exception(value, kind)
        if kind.__name__ not in self._classes:
            return None
        if issubclass(kind, enum.Enum):
            return ["member", kind.__name__, value.name]
        if not issubclass(kind, (*_PLAIN, int, float, str, bytes, type)):
            attributes = getattr(value, "__dict__", None)
            if type(attributes) is dict:
                pairs = [[name, self.ref(item)] for name, item in attributes.items() if type(name) is str]
                return ["object", kind.__name__, pairs]
        return None

    def _class(self, cls: type) -> list | None:
        if cls in BUILTIN_NAMES:
            return ["type", BUILTIN_NAMES[cls]]
        if cls.__name__ in self._classes:
            return ["class", cls.__name__]
        public = (issubclass(cls, BaseException) or cls in _PLAIN) and cls.__module__ in self._heap.modules
        if public and _library_class(cls.__module__, cls.__qualname__) is cls:
            return ["library", cls.__module__, cls.__qualname__]
        if issubclass(cls, tuple) and _is_namedtuple(cls):
            fields, defaults = list(cls._fields), cls._field_defaults  # type: ignore[attr-defined]
            return ["namedtuple", cls.__name__, fields, self.ref(tuple(defaults.values())), cls.__doc__]
        return None

    def _exception(self, error: BaseException, kind: type) -> list:
        attributes = dict(error.__dict__)
        for base in kind.__mro__[: kind.__mro__.index(BaseException)]:
            for name, member in vars(base).items():
                if type(member) in _MEMBERS and not name.startswith("_"):
                    attributes[name] = getattr(error, name, None)
        pairs = [[name, self.ref(item)] for name, item in attributes.items() if type(name) is str and item is not None]
        causes = error.__cause__, error.__context__
        depth = self._depths.get(id(error), 0) + 1
        self._depths |= dict.fromkeys(map(id, causes), depth)
        refs = [self.ref(cause) if depth < MAX_CAUSES else None for cause in causes]
        # A group takes its exceptions when it is made, before lists are filled.
        args = (error.message, error.exceptions) if isinstance(error, BaseExceptionGroup) else tuple(error.args)
        parts = [self.ref(kind), self.ref(args), pairs]
        return ["exception", *parts, *refs, error.__suppress_context__]


@functools.cache
def _numpy_scalars() -> frozenset[type]:
    """NumPy's scalars that are equal to Python's, where NumPy is loaded: they travel as these.

    As objects that only the program knows, the result of its `numpy.mean` could not be compared. Not those of other
    sizes: `numpy.float32(0.1) == 0.1`, but the Python float of the former is none of the latter.
    """
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return frozenset()
    return frozenset([numpy.bool_, numpy.int64, numpy.float64, numpy.complex128, numpy.str_])


def _is_namedtuple(cls: type) -> bool:
    """Whether the class is one that `namedtuple` or `NamedTuple` makes, with nothing more."""
    fields = vars(cls).get("_fields")
    return cls.__bases__ == (tuple,) and type(fields) is tuple and not {*vars(cls)} - _NAMEDTUPLE - {*fields}


def _library_class(module: str, name: str) -> Any:
    """A class of Python's own library; None where there is none of that name."""
    if module.partition(".")[0] in sys.stdlib_module_names:
        found = getattr(sys.modules.get(module), name, None)
        return found if isinstance(found, type) else None
    return None


class Decoder:
    """Reads a message.

    Args:
      heap: what both sides have already; of these, what the message says changes, and it gets what is new.
      message: as received; not trusted in any way.
      classes: gives the class of objects by its name; None for an unknown one.
      foreign: makes the object of a node of any other kind; gets a function that reads references.

    Raises:
      Malformed: the message is not what an `Encoder` writes.
    """

    def __init__(
        self,
        heap: Heap,
        message: Any,
        classes: Callable[[str], type | None],
        foreign: Callable[[list, Callable[[Ref], Any]], Any],
    ):
        nodes, base = message.get("nodes"), message.get("base")
        if type(nodes) is not list or len(nodes) > MAX_NODES:
            raise Malformed("no table of nodes")
        if type(base) is not int or base * heap.side >= 0:
            raise Malformed("numbers of the other side")
        self._heap, self._classes, self._foreign = heap, classes, foreign
        self._nodes: list[Any] = []
        self._objects: list[Any] = []
        self._made: list[bool] = []
        try:
            self._read(nodes, base)
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

    def _read(self, nodes: list, base: int) -> None:
        numbers: list[int | None] = []
        for index, node in enumerate(nodes):
            made, number = None, None
            if node[0] == "at":
                number, node = node[1], node[2] if len(node) == 3 else None
                made = self._heap.objects[number]
                if node is not None and (node[0] not in _CHANGING or not _is_of(made, node)):
                    # The other side can change an object, but not its type.
                    raise Malformed("update with another type")
            elif node[0] in _SHARED:
                number, made = base - self._heap.side * index, self._shell(node)
                if number in self._heap.objects:
                    raise Malformed("a number given twice")
            numbers.append(number if node is not None else None)
            self._nodes.append(node)
            self._objects.append(made)
            self._made.append(made is not None)
        for index in range(len(self._nodes)):
            self._make(index, 0)
        # Sets and mappings last: the hashes of their keys and elements may need attributes.
        hashing = ("set", "ChainMap", *_MAPPINGS.values())
        for late in (False, True):
            for node, value in zip(self._nodes, self._objects, strict=True):
                if node is not None and (node[0] in hashing) == late:
                    self._fill(value, node)
        for number, value in zip(numbers, self._objects, strict=True):
            if number is not None:
                self._heap.exchanged(number, value)

    def _shell(self, node: list) -> Any:
        kind = node[0]
        if kind == "deque":
            return collections.deque(maxlen=node[2])
        if kind in _FILLED:
            return _FILLED[kind]()
        if kind == "ChainMap":
            return collections.ChainMap()
        if kind == "bytearray":
            return bytearray()
        if kind == "object":
            return object.__new__(self._shared_class(node[1]))
        return None

    def _shared_class(self, name: str) -> type:
        cls = self._classes(name)
        if cls is None:
            raise Malformed("no class of both sides")
        return cls

    def _make(self, index: int, depth: int) -> Any:
        """The object of a node; an immutable one is built from its parts, and so cannot contain itself."""
        if self._made[index]:
            return self._objects[index]
        if depth > MAX_NESTED_TUPLES:
            raise Malformed("tuples nested too deep")
        self._objects[index] = self._value(self._nodes[index], depth)
        self._made[index] = True
        return self._objects[index]

    def _part(self, ref: Ref, depth: int) -> Any:
        return self._make(ref[0], depth + 1) if type(ref) is list else self.get(ref)

    def _value(self, node: list, depth: int) -> Any:
        match node:
            case ["tuple", list(items)]:
                return tuple([self._part(item, depth) for item in items])
            case ["frozenset", list(items)]:
                return frozenset(self._part(item, depth) for item in items)
            case ["named", cls, list(items)]:
                made = self._part(cls, depth)
                if not _is_namedtuple(made) or len(items) != len(made._fields):
                    raise Malformed("no named tuple")
                return tuple.__new__(made, (self._part(item, depth) for item in items))
            case ["int", str(text)]:
                return int(text, 16)
            case ["bytes", str(text)]:
                return bytes.fromhex(text)
            case ["complex", float(real), float(imaginary)]:
                return complex(real, imaginary)
            case ["range", start, stop, step]:
                return range(self._part(start, depth), self._part(stop, depth), self._part(step, depth))
            case ["slice", start, stop, step]:
                return slice(self._part(start, depth), self._part(stop, depth), self._part(step, depth))
            case ["Fraction", str(numerator), str(denominator)]:
                return fractions.Fraction(int(numerator, 16), int(denominator, 16))
            case ["Decimal", str(text)]:
                return decimal.Decimal(text)
            case ["datetime" | "date" | "time" as kind, str(text)]:
                return _ISO_TYPES[kind].fromisoformat(text)
            case ["timedelta", int(days), int(seconds), int(microseconds)]:
                return datetime.timedelta(days, seconds, microseconds)
            case ["Ellipsis"]:
                return Ellipsis
            case ["NotImplemented"]:
                return NotImplemented
            case _:
                return self._describe(node, depth)

    def _describe(self, node: list, depth: int) -> Any:
        match node:
            case ["view", "keys" | "values" | "items" as name, ref]:
                mapping = self._part(ref, depth)
                if type(mapping) not in _MAPPINGS:
                    raise Malformed("view of no mapping")
                return getattr(mapping, name)()
            case ["type", str(name)]:
                return BUILTIN_TYPES[name]
            case ["class", str(name)]:
                return self._shared_class(name)
            case ["library", str(module), str(name)]:
                cls = _library_class(module, name)
                if cls is None or not (issubclass(cls, BaseException) or cls in _PLAIN):
                    raise Malformed("no class of the library")
                return cls
            case ["namedtuple", str(name), list(fields), defaults, doc]:
                return _namedtuple(name, tuple(fields), self._part(defaults, depth), doc)
            case ["member", str(cls), str(name)]:
                return self._shared_class(cls)[name]  # type: ignore[index]
            case ["exception", cls, args, list(pairs), cause, context, bool(suppressed)]:
                kind, parts = self._part(cls, depth), self._part(args, depth)
                attributes = {str(name): self._part(item, depth) for name, item in pairs}
                error = _raised(kind, parts, attributes)
                error.__cause__, error.__context__ = self._part(cause, depth), self._part(context, depth)
                error.__suppress_context__ = suppressed
                return error
            case _:
                return self._foreign(node, lambda ref: self._part(ref, depth))

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
        elif kind in _FILLED:
            pairs = [(self.get(key), self.get(item)) for key, item in node[1]]
            value.clear()
            plain: Any = collections.OrderedDict if kind == "OrderedDict" else dict
            for key, item in pairs:
                plain.__setitem__(value, key, item)
            if kind == "defaultdict":
                value.default_factory = self.get(node[2])
        elif kind == "bytearray":
            value[:] = bytes.fromhex(node[1])
        elif kind == "ChainMap":
            value.maps = self.get(node[1])
            if type(value.maps) is not list or not all(type(mapping) in _MAPPINGS for mapping in value.maps):
                raise Malformed("a chain of no mappings")
        elif kind == "object":
            attributes = {name: self.get(item) for name, item in node[2]}
            _check_attributes(type(value), attributes)
            value.__dict__.clear()
            value.__dict__.update(attributes)


def _is_of(value: Any, node: list) -> bool:
    return type(value).__name__ == (node[1] if node[0] == "object" else node[0])


def _check_attributes(cls: type, attributes: dict[str, Any]) -> None:
    if any(callable(getattr(cls, name, None)) for name in attributes):
        # It would replace the method, `__eq__` for example, with which the tests compare the object.
        raise Malformed("an attribute hides a method")


_namedtuples: dict[tuple, type] = {}


def _namedtuple(name: str, fields: tuple, defaults: tuple, doc: Any) -> type:
    atoms = all(type(value) in (type(None), bool, int, float, str) for value in defaults)
    key = (name, fields, tuple((type(value), value) if atoms else id(value) for value in defaults), doc)
    if key not in _namedtuples:
        made = collections.namedtuple(name, fields, defaults=defaults)  # type: ignore[misc]
        made.__doc__ = doc
        _namedtuples[key] = made
    return _namedtuples[key]


def _raised(cls: Any, args: tuple, attributes: dict[str, Any]) -> BaseException:
    """An exception as it was, without running code of its class beyond Python's own."""
    if not issubclass(cls, BaseException) or of(cls) is not None or type(args) is not tuple:
        raise Malformed("exception of no exception's class")
    error = cls.__new__(cls, *args)
    if isinstance(cls.__init__, types.WrapperDescriptorType):
        cls.__init__(error, *args)
    _check_attributes(cls, attributes)
    for name, value in attributes.items():
        if type(getattr(cls, name, None)) in _MEMBERS:
            with contextlib.suppress(AttributeError):  # Some can be read only: they follow from the arguments.
                setattr(error, name, value)
        else:
            error.__dict__[name] = value
    return error
