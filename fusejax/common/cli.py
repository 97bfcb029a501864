"""What every command shares: a YAML file checked against a typed model, and mistakes told in one line.

A user's mistake (config, path, data, checkpoint) is raised as `UserError` wherever it is found, and `run` turns it
into `error: ...` on stderr with exit status 2. Ctrl-C ends a command with one line and status 130. Any other exception
is a bug and keeps its traceback.
"""

import argparse
import atexit
import difflib
import importlib.metadata
import json
import os
import platform
import re
import signal
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import pydantic
import yaml
from etils import epath

import fusejax
from fusejax.common import redact


class UserError(Exception):
    """A mistake of the user's: one line that names what is wrong, where, and if possible the remedy."""


class ConfigModel(pydantic.BaseModel):
    """Base of all configuration models: unknown keys are refused, numbers finite; nothing changes after loading. Errors
    do not show values, which may be secret."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    @classmethod
    def variants(cls) -> "list[type[ConfigModel]]":
        """The models that a field of this type can hold, if this one is only their common base."""
        return []


def location(path: str) -> str:
    """Returns the path unchanged if it is valid; for configurations and command lines.

    Raises:
      ValueError: it is neither a local path nor `gs://bucket/...`.
    """
    if not re.match(r"gs://[^/]|(?!\w+:/)", path):
        raise ValueError(f"{path} is neither a local path nor gs://BUCKET/...")
    return path


Location = Annotated[str, pydantic.AfterValidator(location)]
"""The type of a configuration's paths: local, or `gs://bucket/...`."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """What an exception says, without line breaks, cut after so many characters.

    >>> one_line(ValueError("no\\n  such thing")), one_line(KeyError()), one_line(ValueError("x" * 9), 4)
    ('no such thing', 'KeyError', 'xxxx ...')
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]} ..."


Config = TypeVar("Config", bound=pydantic.BaseModel)


INTERRUPTED = 128 + signal.SIGINT
"""Exit status after Ctrl-C: 130, as shells have it."""

_VERSIONS = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "transformers", "torch", "vllm", "ray")


def versions() -> dict[str, str]:
    """Versions of fusejax, of Python and of the installed packages that a run depends on. Imports none of these."""
    found = {"fusejax": fusejax.__version__, "python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class _ShowVersions(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any):
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help="print versions and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        found = versions()
        print(f"fusejax {found.pop('fusejax')} ({', '.join(f'{name} {version}' for name, version in found.items())})")
        parser.exit()


def command_parser(program: str, description: str, example: str) -> argparse.ArgumentParser:
    """A parser with `--version`, whose help keeps the line breaks of its texts.

    Args:
      program: how the user calls it; stands in `example` as `{program}`.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=example.format(program=program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_ShowVersions)
    return parser


def add_config_options(parser: argparse.ArgumentParser, model: type[pydantic.BaseModel]) -> None:
    """Adds `--config FILE [key.path=value ...]`; `model` is what `load_config` will check, for a shell's completion."""
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file")
    overrides = parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="replaces one value of the file"
    )
    overrides.completer = lambda **_: [f"{path}=" for path in key_paths(model)]  # type: ignore[attr-defined]


def key_paths(model: type[pydantic.BaseModel]) -> list[str]:
    """`key.path` of every value, sections opened."""
    paths = []
    for name, field in model.model_fields.items():
        sections = [
            kind
            for kind in (field.annotation, *getattr(field.annotation, "__args__", ()))
            if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)
        ]
        models = [each for kind in sections for each in (kind, *_variants(kind))]
        paths += [f"{name}.{path}" for each in models for path in key_paths(each)] or [name]
    return list(dict.fromkeys(paths))


def add_host_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say on which of several hosts a process runs, for `fusejax.distributed.hosts.join`."""
    group = parser.add_argument_group("several hosts", "On TPU pods none of these is needed.")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="host 0, and a port that is free there")
    group.add_argument("--num-hosts", type=int, metavar="N", help="how many hosts run this command")
    group.add_argument("--host-index", type=int, metavar="I", help="which of them this is, from 0")


def load_config(
    model: type[Config],
    path: str | Path,
    overrides: list[str],
    rename: Callable[[dict[str, Any], str], str] = lambda values, key: key,
    named: Collection[str] = (),
) -> Config:
    """Reads YAML, applies `key.path=value` overrides (values are YAML too) and validates.

    Args:
      model: what the file must hold.
      path: the file, local or in a bucket.
      overrides: from the command line.
      rename: (the file's values, an override's key) -> the key that it means there.
      named: keys of sections for which the file may give the section's `name` alone.

    Raises:
      UserError: no such file, no YAML, an unknown or misspelt key, a wrong type, an impossible combination.
    """
    try:
        text = epath.Path(path).read_text()
    except OSError as error:
        raise UserError(f"config {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"config {path}: not UTF-8: {one_line(error)}") from None
    try:
        values = yaml.load(text, _Loader) or {}
    except yaml.YAMLError as error:
        raise UserError(f"config {path}: not YAML: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"config {path}: expected keys and values, found {type(values).__name__}")
    for override in overrides:
        apply_override(values, override, rename, named)
    return checked(model, values, f"config {path}")


def checked(model: type[Config], values: dict[str, Any], where: str) -> Config:
    """The values as the model that they must fit.

    Args:
      where: names them in errors.

    Raises:
      UserError: an unknown or misspelt key, a wrong type, an impossible combination.
    """
    try:
        # As JSON, where strict validation takes 1 for a float and a list for a tuple, but not `true` for a number.
        return model.model_validate_json(json.dumps(values, default=str), strict=True)
    except pydantic.ValidationError as error:
        raise UserError(f"{where}: {_explain(error, model)}") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def run(main: Callable[[], None]) -> None:
    """Calls `main`; a `UserError` becomes one line on stderr and exit status 2, Ctrl-C one line and status 130."""
    try:
        main()
    except UserError as error:
        note(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        note("interrupted")
        sys.exit(INTERRUPTED)


def leave(status: int) -> NoReturn:
    """Ends the process after all that is registered for its end, but without tearing the interpreter down: libraries
    that left threads of C++ running can abort the process there, all its work done."""
    # The two that Python itself begins with: threads are waited for, pools of threads told to end.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def note(text: str) -> None:
    """Prints a line on stderr, without passwords; used before anything slow to say what is about to be done."""
    # One write, so that the lines of two threads do not mix.
    print(f"{redact.mask(text)}\n", end="", file=sys.stderr, flush=True)


class _Loader(yaml.SafeLoader):
    """YAML, but `5e-6` is a number, where YAML 1.1 reads a string, and keys may not repeat."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def apply_override(
    values: dict[str, Any],
    override: str,
    rename: Callable[[dict[str, Any], str], str] = lambda values, key: key,
    named: Collection[str] = (),
) -> None:
    """Sets what `key.path=value` says in `values`; the arguments are those of `load_config`.

    Raises:
      UserError: it is no such text, or the key lies below a value.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r}: expected key.path=value")
    *parents, last = rename(values, key).split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if child is None:
            child = values[parent] = {}
        if parent in named and isinstance(child, str):
            child = values[parent] = {"name": child}
        if not isinstance(child, dict):
            raise UserError(f"override {override!r}: {parent!r} has no keys below it")
        values = child
    try:
        values[last] = yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise UserError(f"override {override!r}: {text!r} is not a YAML value") from None


def _explain(error: pydantic.ValidationError, model: type[pydantic.BaseModel]) -> str:
    """The first problem, as `key.path: what`, with the nearest valid key for a misspelt one."""
    # A misspelt key is also a missing one: the spelling is what the user needs to hear of.
    problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in problem["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        last = str(problem["loc"][-1])
        beside, anywhere = _keys_of_section(model, problem["loc"][:-1]), _keys(model) - {last}
        near = difflib.get_close_matches(last, beside, n=1) or difflib.get_close_matches(last, anywhere, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{key}: unknown key{hint}{more}"
    message = problem["msg"].removeprefix("Value error, ")
    where = f"{key}: " if key else ""
    return f"{where}{message[0].lower()}{message[1:]}{more}"


def _variants(kind: Any) -> list[type[ConfigModel]]:
    return kind.variants() if isinstance(kind, type) and issubclass(kind, ConfigModel) else []


def _keys_of_section(model: type[pydantic.BaseModel], path: Sequence[Any]) -> set[str]:
    """The keys of the section at a path, for suggestions."""
    models = [model]
    for part in path:
        fields = [each.model_fields[part] for each in models if part in each.model_fields]
        if fields:  # and not a place in a list, nor a name that the user chose
            models = [inner for field in fields for inner in _models(field.annotation)]
    return {key for each in models for key in each.model_fields}


def _models(annotation: Any) -> list[type[pydantic.BaseModel]]:
    """The models that a field with this annotation may hold, alone or in a list, a dictionary or a union."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation, *_variants(annotation)]
    return [model for inner in getattr(annotation, "__args__", ()) for model in _models(inner)]


def _keys(model: Any) -> set[str]:
    """Every key at any depth of a model, for suggestions; a field may hold any subclass of its model."""
    keys: set[str] = set()
    for name, field in getattr(model, "model_fields", {}).items():
        keys.add(name)
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            for each in (kind, *_variants(kind)):
                keys |= _keys(each)
    return keys
