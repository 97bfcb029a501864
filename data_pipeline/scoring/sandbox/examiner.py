"""The trusted side of a job: runs the tests, with stand-ins in place of the program's functions.

A stand-in sends arguments and receives a value; the tests compare it here, so the program never sees what is expected.
An object of one of the program's own classes stays in the program's process; see `stand_ins`. Where a test relies on
the judgement of such an object (`Point(1) == Point(1)`, `f(1).startswith("a")`), passing proves nothing; where it needs
what a stand-in cannot show, neither passing nor failing does. Then the verdict is unknown.
"""

import ast
import builtins
import contextlib
import json
import os
import types
from collections.abc import Callable
from typing import Any

from .channel import Channel, Closed, TooLong
from .heap import EXAMINER, Heap
from .stand_ins import Reference, StandIn, Undecidable, make, of, refer, type_of
from .values import BUILTIN_TYPES, COPIED, Decoder, Encoder, Malformed

MAX_CALLS = 300_000
_REPORT_BYTES = 3_000
"""Less than a pipe takes in one write."""


class Misbehaved(BaseException):
    """The program broke the protocol: no answer, too many, or nonsense. Not an `Exception`: tests do not catch it."""


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
        exec(_compiled(job["setting"], "setting.py"), namespace)
        where = "import"
        remote.ask("load", job["shared"], job["code"], job["classes"])
        for number, test in enumerate(job["tests"], 1):
            where = f"test_{number}"
            exec(_compiled(test, f"{where}.py"), namespace)
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
        case _ if remote.hidden is not None:
            return "unknown", f"undecidable: {where}: an object of type {remote.hidden}"
        case error:
            reason = "error" if where == "import" else "failed_test"
            return "wrong", f"{reason}: {where}: {type(error).__name__}: {_text(error)}"


def _text(error: BaseException) -> str:
    try:
        return str(error)[:200]
    except BaseException:
        return ""


def _compiled(text: str, name: str) -> types.CodeType:
    """The tests' code, with `type(x)` as a call of `type_of`: no class can answer that for its objects."""
    if "type(" not in text:
        return compile(text, name, "exec")
    tree = ast.parse(text)
    if not any(isinstance(node, ast.arg) and node.arg == "type" for node in ast.walk(tree)):
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name(id="type", ctx=ast.Load()) as function, args=[ast.expr()], keywords=[]):
                    function.id = "__type_of__"
    return compile(tree, name, "exec")


class _Namespace(dict):
    """Globals of the tests. A name that neither they nor Python define is looked up in the program at each use."""

    def __init__(self, remote: "_Remote", names: list[str]):
        asked = {"isinstance": remote.isinstance, "issubclass": remote.issubclass, "__type_of__": type_of}
        super().__init__(__name__="answer", __builtins__=builtins, **asked)
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
        if reference := of(value):
            reference.named = True
        return value


class _Remote:
    """Sends requests to the program and reads its replies."""

    def __init__(self, channel: Channel, classes: frozenset[str]):
        self._channel, self._classes = channel, classes
        self._heap = Heap(EXAMINER)
        self.namespace: dict[str, Any] = {}
        self.doubts: list[str] = []
        """Operators by which the program judged itself."""
        self.hidden: str | None = None
        """A class whose objects Python itself treats in ways that their stand-ins cannot show."""
        self.raised: BaseException | None = None
        """The last exception that came from the program."""
        self.broken: BaseException | None = None
        """Why nothing can be asked any more: Closed, Misbehaved or Undecidable."""
        self.reading = False
        """While a reply is read: its sets and mappings compare stand-ins."""
        self._stand_ins: dict[int, Any] = {}
        self._described: dict[int, dict] = {}
        self._functions: list[Any] = []
        self._thrown: list[BaseException] = []
        self._calls = self._depth = 0

    def ask(self, operation: str, *arguments: Any) -> Any:
        """What the program's operation returned; raises what it raised, Closed, Misbehaved or Undecidable."""
        if self.broken is not None:
            raise self.broken
        self._depth += 1
        try:
            return self._ask(operation, *arguments)
        except (Closed, Misbehaved, Undecidable) as error:
            self.broken = self.broken or error
            raise
        finally:
            self._depth -= 1

    def give_up(self, reason: str) -> Any:
        """Raises Undecidable, for good: tests that catch it get no further."""
        self.broken = self.broken or Undecidable(reason)
        raise self.broken

    def isinstance(self, value: Any, classes: Any) -> bool:
        """As Python's own, but of an object of the program's the program says so."""
        return self._is("isinstance", isinstance, value, classes)

    def issubclass(self, value: Any, classes: Any) -> bool:
        """As Python's own; see `isinstance`."""
        return self._is("issubclass", issubclass, value, classes)

    def _is(self, operation: str, local: Callable[[Any, Any], bool], value: Any, classes: Any) -> bool:
        if type(classes) is types.UnionType:
            classes = classes.__args__
        if type(classes) is tuple:
            return any(self._is(operation, local, value, cls) for cls in classes)
        if of(value) is None:
            return local(value, classes)
        named = getattr(classes, "__module__", None), getattr(classes, "__qualname__", None)
        if of(classes) is None and self._heap.has(*named, classes):
            return self.ask(f"{operation}_of", value, *named) is True
        return self.ask(operation, value, classes) is True

    def _ask(self, operation: str, *arguments: Any) -> Any:
        # Within a call that is still running, what it was given is in use.
        forget = self._heap.unused() if self._depth == 1 else []
        try:
            self._send({"do": operation, "forget": forget}, *arguments)
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
        (result,) = self._read(message)
        if "thrown" in message:
            raise self._nth(self._thrown, message["thrown"])
        if "error" not in message:
            return result
        if message.get("shown") is not True or not isinstance(result, BaseException):
            raise Undecidable(f"the exception {_text(message['error'])}")
        if isinstance(result, StopIteration) and operation not in ("next", "next_by_name"):
            # It could silently end a `map` over the tests' cases.
            self.doubts.append("StopIteration")
        self.raised = result
        raise result

    def _send(self, message: dict, *values: Any) -> None:
        self._channel.send(message | Encoder(self._heap, self._classes, self._local).message(*values))

    def _read(self, message: dict, count: int = 1) -> list[Any]:
        self.reading = True
        try:
            decoder = Decoder(self._heap, message, self._class, self._foreign)
            refs = message["refs"]
            if type(refs) is not list or len(refs) < count:
                raise Malformed("no references")
            return [decoder.get(ref) for ref in refs[:count]]
        except (Malformed, LookupError, TypeError, ValueError) as malformed:
            raise Misbehaved(f"malformed reply: {malformed}") from None
        except MemoryError:
            raise Misbehaved("a reply too large") from None
        finally:
            self.reading = False

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

    def _nth(self, values: list[Any], index: Any) -> Any:
        if type(index) is not int or not 0 <= index < len(values):
            raise Misbehaved("malformed reply: no such number")
        return values[index]

    def _call_back(self, message: dict) -> None:
        function = self._nth(self._functions, message["callback"])
        arguments, named = self._read(message, 2)
        if type(arguments) is not tuple or type(named) is not dict:
            raise Misbehaved("malformed call: no arguments")
        try:
            result = function(*arguments, **named)
        except Exception as error:
            self._throw(error)
        else:
            self._send({}, result)

    def _throw(self, error: Exception) -> None:
        """Sends what a function of the tests raised; if it comes back through the program, it is the same object."""
        self._thrown.append(error)
        cls = type(error)
        if of(error) is not None or getattr(builtins, cls.__name__, None) is cls or cls.__name__ in self._classes:
            self._send({"thrown": len(self._thrown) - 1}, error)
            return
        base = next(base.__name__ for base in cls.__mro__ if getattr(builtins, base.__name__, None) is base)
        self._send({"thrown": len(self._thrown) - 1, "class": [cls.__name__, base], "text": _text(error)}, None)

    def _class(self, name: str) -> type | None:
        found = dict.get(self.namespace, name) if name in self._classes else None
        return found if isinstance(found, type) else None

    def _local(self, value: Any, encoder: Encoder) -> list:
        """A node for an argument that is not plain data: an object of the program's, or a function of the tests."""
        if reference := of(value):
            return ["handle", reference.number]
        if isinstance(value, type) or not callable(value):
            raise Undecidable(f"an argument of type {type(value).__name__}")
        if isinstance(value, types.BuiltinFunctionType) and self._heap.has(value.__module__, value.__name__, value):
            return ["library_function", value.__module__, value.__name__]
        for number, function in enumerate(self._functions):
            if function is value:
                return ["function", number]
        self._functions.append(value)
        names = {"__name__": getattr(value, "__name__", type(value).__name__)}
        if type(value) is not types.FunctionType:
            return ["function", len(self._functions) - 1, names, None]
        names |= {"__qualname__": value.__qualname__, "__module__": "answer", "__doc__": value.__doc__}
        return ["function", len(self._functions) - 1, names, _signature(value)]

    def _foreign(self, node: list, part: Callable[[Any], Any]) -> Any:
        match node:
            case ["function", int(number)]:
                return self._nth(self._functions, number)
            case ["handle", int(number)]:
                return self._stand_ins[number]
            case ["handle", int(number), ["kind", int(of_class), *_] as described, None | int() as hashed]:
                kind = self._foreign(described, part)
                if number in self._stand_ins:
                    raise Malformed("a number given twice")
                self._stand_ins[number] = refer(_instance(kind), Reference(self, number, hashed))
                self.hidden = self.hidden or self._described[of_class]["hidden"]
                return self._stand_ins[number]
            case ["kind", int(number)]:
                return self._stand_ins[number]
            case ["kind", int(number), dict(described), list(bases)]:
                if number in self._stand_ins:
                    raise Malformed("a number given twice")
                self._described[number] = described
                self._stand_ins[number] = self._kind(number, described, tuple(map(part, bases)))
                return self._stand_ins[number]
        raise Malformed("node of no known kind")

    def _kind(self, number: int, described: dict, bases: tuple) -> type:
        lists = [list(map(str, described[name])) for name in ("special", "inherited", "of_class")]
        if not all(isinstance(base, type) and issubclass(base, BaseException) for base in bases):
            raise Malformed("a base that is no exception's class")
        try:
            name, metaclass = str(described["name"]), str(described["metaclass"])
            known = BUILTIN_TYPES.get(str(described["builtin"]))
            if known in COPIED:
                raise Malformed("a stand-in for plain data")
            decides = described["decides"] is True
            made = make(name, bases or (StandIn,), lists[0], frozenset(lists[1]), metaclass, lists[2], known, decides)
        except TypeError as error:
            raise Undecidable(f"the class {described['name']}: {error}") from None
        return refer(made, Reference(self, number))


def _instance(kind: type) -> Any:
    plain = object if issubclass(kind, StandIn) else BaseException
    return plain.__new__(kind)


def _signature(function: types.FunctionType) -> dict[str, Any]:
    """The parameters of a function, by name."""
    code = function.__code__
    names = code.co_varnames
    keyword = names[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    rest = list(names[code.co_argcount + code.co_kwonlyargcount :])
    return {
        "positional": names[: code.co_argcount],
        "positional_only": code.co_posonlyargcount,
        "defaults": len(function.__defaults__ or ()),
        "keyword": keyword,
        "keyword_defaults": [name for name in keyword if name in (function.__kwdefaults__ or {})],
        "arguments": rest.pop(0) if code.co_flags & 0x04 else None,
        "named": rest.pop(0) if code.co_flags & 0x08 else None,
    }
