"""The trusted side of a job: runs the tests, with stand-ins in place of the program's functions.

A stand-in sends arguments and receives a value; the tests compare it here, so the program never sees what is expected.
An object of one of the program's own classes stays in the program's process; a `Handle` represents it here, and sends
each use of an attribute or method there. Where a test relies on the judgement of such an object
(`Point(1) == Point(1)`, `f(1).startswith("a")`), passing proves nothing, so the verdict is unknown.
"""

import builtins
import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

from .channel import Channel, Closed, TooLong
from .values import Decoder, Encoder, Malformed, changing

MAX_CALLS = 300_000
_REPORT_BYTES = 3_000
"""Less than a pipe takes in one write."""


class Misbehaved(BaseException):
    """The program broke the protocol: no answer, too many, or nonsense. Not an `Exception`: tests do not catch it."""


class Undecidable(BaseException):
    """The test needs something that the program cannot be asked for. Not an `Exception`: tests do not catch it."""


def examine(channel: Channel, job: dict, report: int) -> None:
    """Runs the job's tests and writes `{verdict, detail}` as a line to the descriptor `report`.

    The verdict is "ended" where the program's process ended early; the judge concludes the rest from how it ended.
    """
    verdict, detail = _examine(channel, job)
    line = json.dumps({"verdict": verdict, "detail": detail[: _REPORT_BYTES // 6]})
    os.write(report, line.encode() + b"\n")


def _examine(channel: Channel, job: dict) -> tuple[str, str]:
    remote = _Remote(channel, frozenset(job["classes"]))
    namespace = _Namespace(remote, job["names"])
    remote.namespace = namespace
    where, error = "setting", None
    try:
        for statement in job["imports"]:
            with contextlib.suppress(Exception):  # The program will raise the same error itself.
                exec(compile(statement, "imports.py", "exec"), namespace.imported)
        exec(compile(job["setting"], "setting.py", "exec"), namespace)
        where = "import"
        remote.ask("load", job["shared"], job["code"], job["classes"])
        for number, test in enumerate(job["tests"], 1):
            where = f"test_{number}"
            exec(compile(test, f"{where}.py", "exec"), namespace)
    except BaseException as raised:
        error = raised
    # A test may have caught what it should not, with a bare `except`.
    match remote.broken or error:
        case None:
            if remote.doubts:
                return "unknown", f"compared_by_the_program: {remote.doubts[0]}"
            return "correct", "passed"
        case Closed():
            return "ended", where
        case Misbehaved() as error:
            return "wrong", f"misbehaved: {where}: {error}"
        case Undecidable() as error:
            return "unknown", f"undecidable: {where}: {error}"
        case error if where == "setting":
            return "unknown", f"bad_test: {where}: {type(error).__name__}: {_text(error)}"
        case MemoryError() as error if error is not remote.raised:
            return "unknown", f"examiner_memory: {where}"
        case error:
            reason = "error" if where == "import" else "failed_test"
            return "wrong", f"{reason}: {where}: {type(error).__name__}: {_text(error)}"


def _text(error: BaseException) -> str:
    try:
        return str(error)[:200]
    except BaseException:
        return ""


class _Namespace(dict):
    """Globals of the tests. A name that neither they nor Python define is looked up in the program at each use."""

    def __init__(self, remote: "_Remote", names: list[str]):
        super().__init__(__name__="answer", __builtins__=builtins)
        self._remote, self._names = remote, frozenset(names)
        self.imported: dict[str, Any] = {}
        """What the program imports, from the real modules: a `math` of the program's could make any comparison true."""

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)
        if name in self.imported:
            return self.imported[name]
        if name not in self._names:
            raise KeyError(name)
        value = self._remote.ask("name", name)
        if type(value) is Handle:
            _of(value).named = True
        return value


class _Remote:
    """Sends requests to the program and reads its replies."""

    def __init__(self, channel: Channel, classes: frozenset[str]):
        self._channel, self._classes = channel, classes
        self.namespace: dict[str, Any] = {}
        self.doubts: list[str] = []
        """Operators by which the program judged itself."""
        self.raised: BaseException | None = None
        """The last exception that came from the program."""
        self.broken: BaseException | None = None
        """Why nothing can be asked any more: Closed, Misbehaved or Undecidable."""
        self._handles: dict[int, Handle] = {}
        self._functions: list[Any] = []
        self._exceptions: dict[tuple[str, str], type[BaseException]] = {}
        self._calls = 0

    def ask(self, operation: str, *arguments: Any) -> Any:
        """What the program's operation returned; raises what it raised, Closed, Misbehaved or Undecidable."""
        if self.broken is not None:
            raise self.broken
        try:
            return self._ask(operation, *arguments)
        except (Closed, Misbehaved, Undecidable) as error:
            self.broken = self.broken or error
            raise

    def _ask(self, operation: str, *arguments: Any) -> Any:
        encoder = Encoder(self._classes, self._local)
        args = [encoder.add(argument) for argument in arguments]
        try:
            self._channel.send({"do": operation, "args": args, "nodes": encoder.nodes})
        except TooLong:
            raise Undecidable("the arguments are too long") from None
        while True:
            self._calls += 1
            if self._calls > MAX_CALLS:
                raise Misbehaved("too many calls")
            message = self._receive()
            if "callback" not in message:
                break
            self._call_back(message)
        try:
            if "error" in message:
                name, base, text = message["error"]
                if base == "StopIteration" and operation != "next":
                    # It would silently end a `map` over the tests' cases.
                    name = base = "RuntimeError"
                error = self._exception(name, base)(str(text))
                self.raised = error
            else:
                known = changing(encoder.objects, self._classes)
                allowed = [value if id(value) in known else None for value in encoder.objects]
                reply = Decoder(message["nodes"], self._class, self._foreign, allowed)
                return reply.get(message["result"])
        except (Malformed, LookupError, TypeError, ValueError) as malformed:
            raise Misbehaved(f"malformed reply: {malformed}") from None
        except MemoryError:
            raise Misbehaved("a reply too large") from None
        raise error

    def _receive(self) -> dict:
        try:
            message = self._channel.receive()
        except (TooLong, MemoryError):
            raise Misbehaved("a reply too large") from None
        except ValueError:
            raise Misbehaved("malformed reply: no JSON") from None
        if type(message) is not dict:
            raise Misbehaved("malformed reply: no object")
        return message

    def _call_back(self, message: dict) -> None:
        try:
            function = self._functions[message["callback"]]
            decoder = Decoder(message["nodes"], self._class, self._foreign)
            arguments, named = map(decoder.get, message["args"])
            if type(arguments) is not tuple or type(named) is not dict:
                raise TypeError("no arguments")
        except (Malformed, LookupError, TypeError, ValueError, MemoryError) as malformed:
            raise Misbehaved(f"malformed call: {malformed}") from None
        encoder = Encoder(self._classes, self._local)
        try:
            result = function(*arguments, **named)
            reply = {"result": encoder.add(result), "nodes": encoder.nodes}
        except Exception as error:
            kind = next(base.__name__ for base in type(error).__mro__ if hasattr(builtins, base.__name__))
            reply = {"error": [kind, _text(error)]}
        self._channel.send(reply)

    def _class(self, name: str) -> type | None:
        found = dict.get(self.namespace, name) if name in self._classes else None
        return found if isinstance(found, type) else None

    def _local(self, value: Any) -> list:
        """A node for an argument that is not plain data: an object of the program's, or a function of the tests."""
        if type(value) is Handle:
            return ["handle", _of(value).number]
        if isinstance(value, type) or not callable(value):
            raise Undecidable(f"an argument of type {type(value).__name__}")
        self._functions.append(value)
        return ["callback", len(self._functions) - 1]

    def _foreign(self, node: list) -> Any:
        match node:
            case ["handle", int(number), bool(is_class)]:
                if number not in self._handles:
                    handle = object.__new__(Handle)
                    object.__setattr__(handle, "_reference", _Reference(self, number, is_class))
                    self._handles[number] = handle
                return self._handles[number]
            case ["exception", str(name), str(base)]:
                return self._exception(name, base)
        raise Malformed("node of no known kind")

    def _exception(self, name: str, base: str) -> type[BaseException]:
        parent = getattr(builtins, base)
        if not (isinstance(parent, type) and issubclass(parent, BaseException)):
            raise Malformed("exception of no exception's class")
        if name == base:
            return (
                parent if parent not in (UnicodeDecodeError, UnicodeEncodeError, UnicodeTranslateError) else ValueError
            )
        return self._exceptions.setdefault((name, base), type(name, (parent,), {}))


class _Reference:
    """Which object of the program a handle stands for."""

    def __init__(self, remote: _Remote, number: int, is_class: bool):
        self.remote, self.number, self.is_class = remote, number, is_class
        self.constructed = False
        """Made by the test itself by calling a class: only such objects take part in operators."""
        self.named = False
        """The tests reached it by names and attributes alone, not by calling something."""
        self.method = False
        """An attribute of what a function returned."""


def _of(handle: "Handle") -> _Reference:
    return object.__getattribute__(handle, "_reference")


def _constructed(value: Any) -> Any:
    if type(value) is Handle:
        _of(value).constructed = True
    return value


class Handle:
    """Stands for an object of the program's."""

    __slots__ = ("_reference",)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if _of(self).method and (arguments or named):
            # Tests that expect a text would rely on the program's own `startswith`.
            _of(self).remote.doubts.append("a method of a result")
        result = _of(self).remote.ask("call", self, arguments, named)
        return _constructed(result) if _of(self).is_class else result

    def __getattr__(self, name: str) -> Any:
        reference = _of(self)
        value = reference.remote.ask("getattr", self, name)
        if type(value) is Handle:
            _of(value).named |= reference.named or reference.constructed
            _of(value).method |= not (reference.named or reference.constructed)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        _of(self).remote.ask("setattr", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return _of(self).remote.ask("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _of(self).remote.ask("setitem", self, key, value)

    def __delitem__(self, key: Any) -> None:
        _of(self).remote.ask("delitem", self, key)

    def __len__(self) -> int:
        return _of(self).remote.ask("len", self)

    def __bool__(self) -> bool:
        return _of(self).remote.ask("bool", self)

    def __int__(self) -> int:
        return _of(self).remote.ask("int", self)

    def __float__(self) -> float:
        return _of(self).remote.ask("float", self)

    def __index__(self) -> int:
        return _of(self).remote.ask("index", self)

    def __str__(self) -> str:
        return _of(self).remote.ask("str", self)

    def __repr__(self) -> str:
        return _of(self).remote.ask("repr", self)

    def __iter__(self) -> Iterator:
        iterator = _of(self).remote.ask("iter", self)
        return iterator if type(iterator) is Handle else iter(iterator)

    def __next__(self) -> Any:
        return _of(self).remote.ask("next", self)

    def __reversed__(self) -> Iterator:
        return _of(self).remote.ask("reversed", self)

    def __enter__(self) -> Any:
        return _of(self).remote.ask("call", self.__getattr__("__enter__"), (), {})

    def __exit__(self, kind: Any, value: Any, trace: Any) -> Any:
        if kind is not None:
            raise Undecidable("an exception in a context manager of the program's")
        return _of(self).remote.ask("call", self.__getattr__("__exit__"), (None, None, None), {})

    def __instancecheck__(self, value: Any) -> bool:
        return type(value) is Handle and _of(self).remote.ask("isinstance", value, self) is True

    def __subclasscheck__(self, value: Any) -> bool:
        return type(value) is Handle and _of(self).remote.ask("issubclass", value, self) is True

    def __mro_entries__(self, bases: tuple) -> tuple:
        raise Undecidable("the test extends a class of the program's")

    def __hash__(self) -> int:
        return _of(self).number

    def __contains__(self, value: Any) -> bool:
        if not _of(self).constructed:
            return any(value is item or value == item for item in self)
        _of(self).remote.doubts.append("contains")
        return _of(self).remote.ask("contains", self, value)


def _operator(name: str, *, reflected: bool = False) -> Any:
    def operate(self: Handle, other: Any) -> Any:
        # A function's result could claim to equal anything, and must not see what it is compared with.
        if not _of(self).constructed:
            return NotImplemented
        remote = _of(self).remote
        remote.doubts.append(name)
        return _constructed(remote.ask(name, other, self) if reflected else remote.ask(name, self, other))

    return operate


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Handle, f"__{_name}__", _operator(_name))
for _name in (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and_",
    "or_",
    "xor",
    "lshift",
    "rshift",
):
    _plain = _name.rstrip("_")
    setattr(Handle, f"__{_plain}__", _operator(_name))
    setattr(Handle, f"__r{_plain}__", _operator(_name, reflected=True))
