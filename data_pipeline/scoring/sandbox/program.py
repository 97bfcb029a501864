"""The untrusted side: loads a program and does what the examiner asks of it. No verdict relies on anything here."""

import builtins
import operator
import sys
import types
from collections.abc import Callable
from typing import Any

from .channel import Channel, TooLong
from .values import Decoder, Encoder, changing


def serve(channel: Channel) -> None:
    """Answers the examiner until it closes the channel."""
    _Server(channel).serve()


class _Server:
    def __init__(self, channel: Channel):
        self._channel = channel
        self._classes: frozenset[str] = frozenset()
        self._module = types.ModuleType("answer")
        self._handles: list[Any] = []
        self._handle_of: dict[int, int] = {}
        self._operations: dict[str, Callable] = {
            "load": self._load,
            "name": self._name,
            "call": lambda function, arguments, named: function(*arguments, **named),
            "isinstance": isinstance,
            "issubclass": issubclass,
            "iter": iter,
            "next": next,
            "len": len,
            "bool": bool,
            "str": str,
            "repr": repr,
            "int": int,
            "float": float,
            "abs": abs,
            "reversed": reversed,
            "getattr": getattr,
            "setattr": setattr,
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
                reply = {"error": describe(error)}
            try:
                self._channel.send(reply)
            except TooLong:
                self._channel.send({"error": ["RuntimeError", "RuntimeError", "the result is too long"]})

    def _do(self, message: dict) -> dict:
        request = Decoder(message["nodes"], self._class, self._own)
        operation = self._operations.get(message["do"]) or getattr(operator, message["do"])
        result = operation(*map(request.get, message["args"]))
        known = changing(request.objects, self._classes)
        encoder = Encoder(self._classes, self._foreign, known)
        changed = [request.objects[index] for index in known.values()]
        return {"result": encoder.add(result), "changed": [encoder.add(v) for v in changed], "nodes": encoder.nodes}

    def _load(self, setting: str, code: str, classes: list[str]) -> None:
        # A module of its own, so that the program's dataclasses and `__main__` guards work.
        self._classes = frozenset(classes)
        sys.modules["answer"] = self._module
        exec(compile(setting, "setting.py", "exec"), self._module.__dict__)
        exec(compile(code, "answer.py", "exec"), self._module.__dict__)

    def _name(self, name: str) -> Any:
        return self._module.__dict__[name]

    def _class(self, name: str) -> type | None:
        found = self._module.__dict__.get(name)
        return found if isinstance(found, type) else None

    def _own(self, node: list) -> Any:
        kind, number = node
        if kind == "handle":
            return self._handles[number]

        def function(*arguments: Any, **named: Any) -> Any:
            encoder = Encoder(self._classes, self._foreign)
            args = [encoder.add(arguments), encoder.add(named)]
            self._channel.send({"callback": number, "args": args, "nodes": encoder.nodes})
            message = self.serve()
            if "error" in message:
                raise getattr(builtins, message["error"][0])(message["error"][1])
            return Decoder(message["nodes"], self._class, self._own).get(message["result"])

        return function

    def _foreign(self, value: Any) -> list:
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["exception", value.__name__, _builtin_base(value)]
        number = self._handle_of.get(id(value))
        if number is None:
            number = self._handle_of[id(value)] = len(self._handles)
            self._handles.append(value)
        return ["handle", number, isinstance(value, type)]


def describe(error: BaseException) -> list[str]:
    """An exception as its class, the nearest class that Python itself has, and its text."""
    try:
        text = str(error)[:500]
    except BaseException:
        text = ""
    return [type(error).__name__, _builtin_base(type(error)), text]


def _builtin_base(cls: type) -> str:
    return next(base.__name__ for base in cls.__mro__ if getattr(builtins, base.__name__, None) is base)
