"""What stands in the tests for the program's own objects and classes.

An object of a class of the program's stays in the program's process. Its stand-in is of a class that has the same
special methods, and sends each use of these and of attributes there; a stand-in for a class is a class, so that
`type(x).__name__` and `except` work. What it cannot show without trusting the program makes the test undecidable:
what a result equals, its order, its sums. Objects that the tests made themselves are asked; then passing proves
nothing.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

ASKED = {
    "__abs__": "abs",
    "__bool__": "bool",
    "__bytes__": "bytes",
    "__call__": "call",
    "__ceil__": "ceil",
    "__complex__": "complex",
    "__delitem__": "delitem",
    "__float__": "float",
    "__floor__": "floor",
    "__getitem__": "getitem",
    "__index__": "index",
    "__int__": "int",
    "__invert__": "invert",
    "__iter__": "iter",
    "__len__": "len",
    "__neg__": "neg",
    "__next__": "next",
    "__pos__": "pos",
    "__reversed__": "reversed",
    "__round__": "round",
    "__setitem__": "setitem",
    "__trunc__": "trunc",
}
"""Special methods that take nothing to compare with, and the operations that the program is asked for."""
COMPARED = ("eq", "ne", "lt", "le", "gt", "ge")
_ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "lshift", "rshift")
_BITWISE = ("and", "or", "xor")
JUDGED = {
    "__contains__": "contains",
    "__divmod__": "divmod",
    **{f"__{name}__": name for name in (*COMPARED, *_ARITHMETIC)},
    **{f"__{name}__": f"{name}_" for name in _BITWISE},
    **{f"__i{name}__": f"i{name}" for name in (*_ARITHMETIC, *_BITWISE)},
}
"""Special methods by which an object could claim to be whatever the tests expect."""
REFLECTED = {f"__r{name}__": f"{name}_" if name in _BITWISE else name for name in (*_ARITHMETIC, *_BITWISE, "divmod")}
SPECIAL = frozenset([*ASKED, *JUDGED, *REFLECTED, "__enter__", "__exit__", "__hash__"])
_PRIVATE = ("__dataclass_fields__", "__dataclass_params__")
"""Attributes in which Python's library recognises objects of its own, which stand-ins are not."""


class Undecidable(BaseException):
    """The test needs something that the program cannot be asked for. Not an `Exception`: tests do not catch it."""


@runtime_checkable
class Remote(Protocol):
    """What stand-ins need of the connection to the program."""

    doubts: list[str]
    reading: bool
    raised: BaseException | None

    def ask(self, operation: str, *arguments: Any) -> Any: ...

    def give_up(self, reason: str) -> Any: ...


class Reference:
    """Which object of the program a stand-in stands for."""

    def __init__(self, remote: Remote, number: int, hashed: int | None = None):
        self.remote, self.number, self.hashed = remote, number, hashed
        self.constructed = False
        """Made by the test itself by calling a class: only such objects, and named ones, take part in operators."""
        self.named = False
        """The tests reached it by names and attributes alone, not by calling something."""
        self.method = False
        """An attribute of what a function returned."""
        self.next = False
        """A method `__next__`."""


def of(value: Any) -> Reference | None:
    """The reference of a stand-in; None where the value is none."""
    kind = type(value)
    if issubclass(kind, Kind):
        return type.__getattribute__(value, "_stands_for")
    if issubclass(type(kind), Kind):
        return object.__getattribute__(value, "_reference")
    return None


def _of(value: Any) -> Reference:
    reference = of(value)
    assert reference is not None
    return reference


def _constructed(value: Any) -> Any:
    if reference := of(value):
        reference.constructed = True
    return value


def _attribute(self: Any, name: str) -> Any:
    reference = _of(self)
    if name in _PRIVATE:
        reference.remote.give_up(f"the attribute {name}")
    value = reference.remote.ask("getattr", self, name)
    if found := of(value):
        found.named |= reference.named or reference.constructed
        found.method |= not (reference.named or reference.constructed)
        found.next = name == "__next__"
    return value


class Kind(type):
    """The class of stand-ins for classes."""

    def __new__(cls, name: str, bases: tuple, namespace: dict[str, Any]) -> Any:
        if "_stands_for" not in namespace:
            for base in bases:
                if reference := of(base):
                    reference.remote.give_up("the test extends a class of the program's")
        return type.__new__(cls, name, bases, namespace)

    def __getattribute__(cls, name: str) -> Any:
        return type_of(cls) if name == "__class__" else _attribute(cls, name)

    def __setattr__(cls, name: str, value: Any) -> None:
        _of(cls).remote.ask("setattr", cls, name, value)

    def __delattr__(cls, name: str) -> None:
        _of(cls).remote.ask("delattr", cls, name)

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        return _constructed(_of(cls).remote.ask("call", cls, arguments, named))

    def __instancecheck__(cls, value: Any) -> bool:
        return _is(cls, "isinstance", value)

    def __subclasscheck__(cls, value: Any) -> bool:
        return _is(cls, "issubclass", value)

    def __repr__(cls) -> str:
        return _of(cls).remote.ask("repr", cls)

    __str__ = __repr__

    def __hash__(cls) -> int:
        return object.__hash__(cls)


def _is(cls: Kind, operation: str, value: Any) -> bool:
    remote = _of(cls).remote
    if of(value) is not None:
        return remote.ask(operation, value, cls) is True
    if type.__getattribute__(cls, "_decides"):
        remote.give_up(f"{operation} of plain data with a class that decides itself")
    return False


class StandIn:
    """What every stand-in for an object has; `make` adds the special methods of its class."""

    __slots__ = ("_reference",)

    def __getattribute__(self, name: str) -> Any:
        return type_of(self) if name == "__class__" else _attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _of(self).remote.ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        _of(self).remote.ask("delattr", self, name)

    def __repr__(self) -> str:
        return _of(self).remote.ask("repr", self)

    def __str__(self) -> str:
        return _of(self).remote.ask("str", self)

    def __format__(self, specification: str) -> str:
        return _of(self).remote.ask("format", self, specification)

    def __dir__(self) -> list[str]:
        return _of(self).remote.ask("dir", self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _of(self).remote.give_up("a copy of an object")


def type_of(value: Any) -> type:
    """As `type(value)`, but for functions, generators and others of Python's own classes that class itself."""
    kind = type(value)
    if issubclass(kind, Kind):
        return type if kind is Kind else kind
    known = type.__getattribute__(kind, "_builtin") if issubclass(type(kind), Kind) else None
    return known or kind


def make(
    name: str,
    bases: tuple,
    special: list[str],
    inherited: frozenset[str],
    metaclass: str,
    of_class: list[str],
    builtin: type | None,
    decides: bool,
) -> type:
    """A class whose objects stand for those of a class of the program's.

    Args:
      bases: `StandIn`, or the classes of exceptions that it extends.
      special: its special methods.
      inherited: those of these that are a plain type's own: they may be applied to a copy.
      of_class: the special methods of its metaclass, for `Color["RED"]` and `len(Color)`.
    """
    own = {method: _method(method, frozenset()) for method in of_class if method not in ("__call__", "__hash__")}
    kind = Kind if metaclass == "type" else type(metaclass, (Kind,), own)
    namespace: dict[str, Any] = {method: _method(method, inherited) for method in special}
    if "__hash__" not in namespace:
        # Python would take it away where there is `__eq__`, as it did from the class itself if it gave none.
        namespace["__hash__"] = None if "__eq__" in namespace else object.__hash__
    if StandIn in bases:
        namespace["__slots__"] = ()
    else:
        shown = ("__getattribute__", "__setattr__", "__delattr__", "__repr__", "__str__", "__format__", "__dir__")
        namespace |= {name: vars(StandIn)[name] for name in shown}
    known = {"_stands_for": None, "_inherited": inherited, "_builtin": builtin, "_decides": decides}
    return kind(name, bases, namespace | known)


def refer(stand_in: Any, reference: Reference) -> Any:
    """The stand-in, now for the object of that reference."""
    if issubclass(type(stand_in), Kind):
        type.__setattr__(stand_in, "_stands_for", reference)
    else:
        object.__setattr__(stand_in, "_reference", reference)
    return stand_in


def _method(special: str, inherited: frozenset[str]) -> Callable:
    if special == "__call__":
        return _call
    if special == "__hash__":
        return _hash
    if special == "__iter__":
        return _iterate
    if special == "__enter__":
        return lambda self: _of(self).remote.ask("call", _attribute(self, "__enter__"), (), {})
    if special == "__exit__":
        return _exit
    if special in ASKED:
        operation = ASKED[special]
        return lambda self, *arguments: _of(self).remote.ask(operation, self, *arguments)
    return _judgement(special, inherited)


def _call(self: Any, *arguments: Any, **named: Any) -> Any:
    reference = _of(self)
    if reference.method and (arguments or named):
        # Tests that expect a text would rely on the program's own `startswith`.
        reference.remote.doubts.append("a method of a result")
    return reference.remote.ask("next_by_name" if reference.next else "call", self, arguments, named)


def _hash(self: Any) -> int:
    reference = _of(self)
    return reference.remote.ask("hash", self) if reference.hashed is None else reference.hashed


def _iterate(self: Any) -> Iterator:
    iterator = _of(self).remote.ask("iter", self)
    return iterator if of(iterator) else iter(iterator)


def _exit(self: Any, kind: Any, value: Any, trace: Any) -> Any:
    remote = _of(self).remote
    if value is not None and value is not remote.raised:
        remote.give_up("an exception of the tests in a context manager of the program's")
    return remote.ask("call", _attribute(self, "__exit__"), (kind, value, None), {})


def _judgement(special: str, inherited: frozenset[str]) -> Callable:
    reflected = special in REFLECTED
    operation = REFLECTED[special] if reflected else JUDGED[special]

    def judge(self: Any, other: Any) -> Any:
        reference = _of(self)
        remote = reference.remote
        if remote.reading:
            # Within the program's set or mapping they are different.
            return NotImplemented
        if special in inherited:
            return _of_plain(special, self, other)
        # A function's result could claim to equal anything, and must not see what it is compared with.
        if not (reference.constructed or reference.named):
            remote.give_up(f"{special} of a result")
        remote.doubts.append(operation)
        return _constructed(remote.ask(operation, *((other, self) if reflected else (self, other))))

    return judge


def _of_plain(special: str, value: Any, other: Any) -> Any:
    """What a plain type's own method gives for copies: such a method looks at nothing else."""
    if of(other) and issubclass(type(other), StandIn):
        if special not in type.__getattribute__(type(other), "_inherited"):
            return NotImplemented
        other = _plain(other)
    plain = _plain(value)
    return getattr(type(plain), special)(plain, other)


def _plain(value: Any) -> Any:
    remote = _of(value).remote
    plain = remote.ask("plain", value)
    return remote.give_up("a copy that is none") if of(plain) else plain
