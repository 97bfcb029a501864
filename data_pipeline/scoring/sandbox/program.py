"""The untrusted side: loads a program and does what the examiner asks of it. No verdict relies on anything here."""

import builtins
import collections
import contextlib
import functools
import inspect
import math
import operator
import sys
import types
from collections.abc import Callable
from typing import Any

from .channel import Channel, TooLong
from .heap import PROGRAM, Heap
from .stand_ins import SPECIAL
from .values import BUILTIN_NAMES, Decoder, Encoder

_PLAIN: dict[type, Callable[[Any], Any]] = {
    collections.OrderedDict: lambda value: collections.OrderedDict(collections.OrderedDict.items(value)),
    dict: lambda value: dict(dict.items(value)),
    list: lambda value: list.__getitem__(value, slice(None)),
    tuple: lambda value: tuple(tuple.__iter__(value)),
    set: lambda value: set(set.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
}
"""Plain types, and how the plain value in an object of a subclass is copied, whatever the subclass overrides."""
_SHOWN_MODULES = frozenset(["answer", "setting", "abc", "collections.abc", "contextlib", "enum", "numbers", "typing"])
"""Classes of these do all they do by special methods; those of others may be known to Python by their type."""
_SHOWN_TYPES = (
    types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.GeneratorType, types.MethodWrapperType,
    types.WrapperDescriptorType, types.MethodDescriptorType, types.ClassMethodDescriptorType, functools.partial,
    type(functools.lru_cache(len)), collections.abc.Iterator, BaseException,
)  # fmt: skip


def serve(channel: Channel) -> None:
    """Answers the examiner until it closes the channel."""
    _Server(channel).serve()


class _Server:
    def __init__(self, channel: Channel):
        self._channel = channel
        self._heap = Heap(PROGRAM)
        self._classes: frozenset[str] = frozenset()
        self._module = types.ModuleType("answer")
        self._handles: list[Any] = []
        self._handle_of: dict[int, int] = {}
        self._functions: dict[int, Any] = {}
        self._function_of: dict[int, int] = {}
        self._thrown: list[tuple[BaseException, int]] = []
        self._operations: dict[str, Callable] = {
            "load": self._load,
            "name": self._name,
            "plain": self._plain,
            "call": lambda function, arguments, named: function(*arguments, **named),
            "isinstance_of": lambda value, module, name: isinstance(value, getattr(sys.modules[module], name)),
            "issubclass_of": lambda value, module, name: issubclass(value, getattr(sys.modules[module], name)),
            "next_by_name": lambda function, arguments, named: function(*arguments, **named),
            **{operation.__name__: operation for operation in (isinstance, issubclass, iter, next, len, bool, str)},
            **{operation.__name__: operation for operation in (repr, int, float, complex, bytes, abs, round, hash)},
            **{operation.__name__: operation for operation in (reversed, format, dir, divmod)},
            **{operation.__name__: operation for operation in (getattr, setattr, delattr)},
            **{operation.__name__: operation for operation in (math.trunc, math.floor, math.ceil)},
        }

    def serve(self) -> Any:
        """Serves requests until a message is not one: the result of a call of the tests' function, which it returns."""
        while True:
            message = self._channel.receive()
            if "do" not in message:
                return message
            try:
                reply = self._do(message)
            except BaseException as error:
                reply = self._error(error)
            try:
                self._channel.send(reply)
            except TooLong:
                self._channel.send(self._error(RuntimeError("the result is too long")))

    def _do(self, message: dict) -> dict:
        self._heap.forget(message["forget"])
        decoder = Decoder(self._heap, message, self._class, self._own)
        arguments = [decoder.get(ref) for ref in message["refs"]]
        operation = self._operations.get(message["do"]) or getattr(operator, message["do"])
        return self._message(operation(*arguments))

    def _message(self, *values: Any) -> dict:
        return Encoder(self._heap, self._classes, self._foreign).message(*values)

    def _error(self, error: BaseException) -> dict:
        for thrown, number in self._thrown:
            if thrown is error:
                return {"thrown": number} | self._message(None)
        text = describe(error)
        error.__traceback__ = None
        try:
            return {"error": text, "shown": True} | self._message(error)
        except BaseException:
            return {"error": text, "shown": False} | self._message(None)

    def _load(self, setting: str, code: str, classes: list[str]) -> None:
        # A module of its own, so that the program's dataclasses and `__main__` guards work.
        self._classes = frozenset(classes)
        sys.modules["answer"] = self._module
        exec(compile(setting, "setting.py", "exec"), self._module.__dict__)
        exec(compile(code, "answer.py", "exec"), self._module.__dict__)

    def _name(self, name: str) -> Any:
        return self._module.__dict__[name]

    def _plain(self, value: Any) -> Any:
        return next(copy(value) for plain, copy in _PLAIN.items() if issubclass(type(value), plain))

    def _class(self, name: str) -> type | None:
        found = self._module.__dict__.get(name)
        return found if isinstance(found, type) else None

    def _own(self, node: list, part: Callable[[Any], Any]) -> Any:
        match node:
            case ["handle", number]:
                return self._handles[number]
            case ["library_function", module, name]:
                return getattr(sys.modules[module], name)
            case ["function", number]:
                return self._functions[number]
            case ["function", number, attributes, signature]:
                function = _callable(attributes["__name__"], signature, lambda *call: self._call_back(number, *call))
                for name, ref in attributes.items():
                    setattr(function, name, part(ref))
                self._functions[number] = function
                self._function_of[id(function)] = number
                return function
        raise LookupError(node[0])

    def _call_back(self, number: int, arguments: tuple, named: dict) -> Any:
        self._channel.send({"callback": number} | self._message(arguments, named))
        message = self.serve()
        decoder = Decoder(self._heap, message, self._class, self._own)
        result = decoder.get(message["refs"][0])
        if "thrown" in message:
            if result is None:
                name, base = message["class"]
                parent = getattr(builtins, base)
                result = parent.__new__(parent if name == base else type(name, (parent,), {}), message["text"])
            self._thrown.append((result, message["thrown"]))
            raise result
        return result

    def _foreign(self, value: Any, encoder: Encoder) -> list:
        if id(value) in self._function_of:
            return ["function", self._function_of[id(value)]]
        number = self._handle_of.get(id(value))
        if isinstance(value, type):
            return self._kind(value, encoder)
        if number is not None:
            return ["handle", number]
        hashed = None
        if type(value).__hash__ not in (None, object.__hash__):
            with contextlib.suppress(Exception):
                hashed = hash(value)
        return ["handle", self._number(value), self._kind(type(value), encoder), hashed]

    def _number(self, value: Any) -> int:
        number = self._handle_of[id(value)] = len(self._handles)
        self._handles.append(value)
        return number

    def _kind(self, cls: type, encoder: Encoder) -> list:
        if id(cls) in self._handle_of:
            return ["kind", self._handle_of[id(cls)]]
        bases = [base for base in cls.__bases__ if issubclass(base, BaseException)]
        return ["kind", self._number(cls), describe_class(cls), list(map(encoder.ref, bases))]


def describe(error: BaseException) -> str:
    """An exception's class and text, for a person."""
    try:
        return f"{type(error).__name__}: {str(error)[:500]}"
    except BaseException:
        return type(error).__name__


@functools.cache
def describe_class(cls: type) -> dict[str, Any]:
    """What a stand-in's class needs to know of a class: its name and special methods, and what it cannot show."""
    line = cls.__mro__
    special, inherited = [], []
    plain = next((plain for plain in _PLAIN if plain in line), None)
    for method in sorted(SPECIAL):
        owner = next((base for base in line if base is not object and method in vars(base)), None)
        if owner is not None and vars(owner)[method] is not None:
            special.append(method)
            if owner is plain and not method.startswith("__i"):
                inherited.append(method)
    hidden = [
        base.__name__
        for base in line[:-1]
        if base.__module__ not in _SHOWN_MODULES and not issubclass(base, _SHOWN_TYPES)
    ]
    of_metaclass = {name for base in inspect.getmro(type(cls)) if base not in (type, object) for name in vars(base)}
    return {
        "name": cls.__name__,
        "special": special,
        "inherited": inherited,
        "of_class": sorted(SPECIAL & of_metaclass),
        "decides": bool({"__instancecheck__", "__subclasscheck__"} & of_metaclass),
        "metaclass": type(cls).__name__,
        "builtin": BUILTIN_NAMES.get(cls),
        "hidden": hidden[0] if hidden else None,
    }


for _cls in (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.GeneratorType):
    describe_class(_cls)  # Before the zygote forks.


def _callable(name: str, signature: dict | None, forward: Callable) -> Any:
    """A function with the parameters of one of the tests', so that `inspect` and `__code__` tell of them."""
    if signature is None:
        return lambda *arguments, **named: forward(arguments, named)
    absent = object()
    parts, plain, keywords = [], signature["positional"], signature["keyword"]
    for index, parameter in enumerate(plain):
        parts.append(parameter + ("=_absent" if index >= len(plain) - signature["defaults"] else ""))
        if index + 1 == signature["positional_only"]:
            parts.append("/")
    if signature["arguments"] or keywords:
        parts.append("*" + (signature["arguments"] or ""))
    parts += [key + ("=_absent" if key in signature["keyword_defaults"] else "") for key in keywords]
    if signature["named"]:
        parts.append("**" + signature["named"])
    body = (
        f"def function({', '.join(parts)}):\n    return _forward(({''.join(f'{p}, ' for p in plain)}), "
        f"{signature['arguments'] or '()'}, {{{', '.join(f'{k!r}: {k}' for k in keywords)}}}, "
        f"{signature['named'] or '{}'})\n"
    )

    def _forward(positional: tuple, more: tuple, keyword: dict, named: dict) -> Any:
        given = tuple(value for value in positional if value is not absent)
        return forward(given + more, {k: v for k, v in keyword.items() if v is not absent} | named)

    namespace: dict[str, Any] = {"_absent": absent, "_forward": _forward}
    exec(body, namespace)
    return namespace["function"]
