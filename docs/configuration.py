"""Writes configuration.md beside this file: every key of every configuration, read from the models that check them.

    python docs/configuration.py

Types, limits and defaults are pydantic's; the meaning of a key is the string below it in the source.
"""

import ast
import datetime
import inspect
import textwrap
import types
import typing
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import annotated_types
import pydantic
import pydantic_core
from pydantic.fields import FieldInfo

from data_pipeline.benchmarks.config import BenchmarkConfig
from data_pipeline.config import PipelineConfig
from data_pipeline.importing.config import ImportConfig
from fusejax.common.cli import ConfigModel, location
from fusejax.config import EvaluateConfig, MergeConfig, TrainConfig

OUTPUT = Path(__file__).with_suffix(".md")
INTRODUCTION = """\
# Every configuration key

Made by `python docs/configuration.py` from the models that check configurations, so this page is what the programs
accept. A configuration is a YAML file. Unknown keys are refused, with the nearest known one named, and
`key.path=value` on the command line replaces one value of the file. Where nothing else is said, a path may be local or
`gs://BUCKET/...`.
"""
ROOTS: tuple[tuple[str, str, type[ConfigModel]], ...] = (
    ("Training and planning", "`fusejax/config.py`, `TrainConfig`.", TrainConfig),
    ("Merging", "`fusejax/config.py`, `MergeConfig`.", MergeConfig),
    ("Evaluation", "`fusejax/config.py`, `EvaluateConfig`.", EvaluateConfig),
    ("Data pipeline", "`data_pipeline/config.py`, `PipelineConfig`.", PipelineConfig),
    ("Benchmarks", "`data_pipeline/benchmarks/config.py`, `BenchmarkConfig`.", BenchmarkConfig),
    ("Import", "`data_pipeline/importing/config.py`, `ImportConfig`.", ImportConfig),
)
NAMES = {
    datetime.date: "date",
    str: "text",
    int: "integer",
    float: "number",
    bool: "true, false",
    type(None): "null",
    Any: "anything",
}
PLURALS = {str: "texts", int: "integers", float: "numbers"}


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for title, where, root in ROOTS:
        parts.append(f"## {title}\n\n{where}\n")
        found = sections(root)
        taken = Counter(path for paths in found.values() for path in paths)
        for model, paths in found.items():
            if paths != [""]:
                # Of several models for one key, a `name` or `loss` says which.
                choice = model.model_fields.get("name") or model.model_fields.get("loss")
                name = f", {choice.default}" if choice and any(taken[path] > 1 for path in paths) else ""
                parts.append("### " + ", ".join(f"`{path}`" for path in paths) + name + "\n")
            if text := meaning_of_model(model):
                parts.append(f"{text}\n")
            parts.append(table(model))
    return "\n".join(parts)


def sections(root: type[ConfigModel]) -> dict[type[ConfigModel], list[str]]:
    """Every model that the root is made of -> the key paths where it stands, in the order of the keys."""
    found: dict[type[ConfigModel], list[str]] = {}

    def visit(model: type[ConfigModel], path: str) -> None:
        if path not in found.setdefault(model, []):  # Several models for one key may share a section below it.
            found[model].append(path)
        for name, field in model.model_fields.items():
            key = f"{path}.{name}" if path else name
            for inner, suffix in models(field.annotation):
                visit(inner, key + suffix)

    visit(root, "")
    return found


def models(annotation: Any) -> Iterator[tuple[type[ConfigModel], str]]:
    """The models in a type, and what stands behind the key of each: `[]` in lists, `.NAME` in dictionaries."""
    if inspect.isclass(annotation) and issubclass(annotation, ConfigModel):
        yield from ((model, "") for model in annotation.variants() or [annotation])
    origin = typing.get_origin(annotation)
    suffix = {list: "[]", tuple: "[]", dict: ".NAME"}.get(origin, "")
    for argument in () if origin is typing.Literal else typing.get_args(annotation):
        for model, rest in models(argument):
            yield model, suffix + rest


def table(model: type[ConfigModel]) -> str:
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    meanings = meanings_of_fields(model)
    for name, field in model.model_fields.items():
        # A bar would end the cell.
        cells = [f"`{name}`", kind(field), default(field), meanings.get(name, "")]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def kind(field: FieldInfo) -> str:
    """What a key takes, in words."""
    return spelled(field.annotation, field.metadata)


def spelled(annotation: Any, constraints: Sequence[Any] = ()) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return spelled(arguments[0], arguments[1:])
    if any(isinstance(each, pydantic.AfterValidator) and each.func is location for each in constraints):
        return "path"
    if origin is typing.Literal:
        text = ", ".join(f"`{value}`" for value in arguments)
    elif origin in (typing.Union, types.UnionType):
        text = " or ".join(dict.fromkeys(spelled(each) for each in arguments))
    elif origin in (list, tuple):
        text = f"list of {PLURALS.get(arguments[0]) or spelled(arguments[0]).replace('section', 'sections')}"
    elif origin is dict:
        text = f"NAME: {spelled(arguments[1])}"
    elif inspect.isclass(annotation) and issubclass(annotation, ConfigModel):
        text = "section"
    else:
        text = NAMES[annotation]
    return ", ".join([text, *(found for each in constraints if (found := limit(each)))])


def limit(constraint: Any) -> str | None:
    """A bound in words; None for what is no bound."""
    match constraint:
        case annotated_types.Gt(gt=bound):
            return f"> {bound}"
        case annotated_types.Ge(ge=bound):
            return f"≥ {bound}"
        case annotated_types.Lt(lt=bound):
            return f"< {bound}"
        case annotated_types.Le(le=bound):
            return f"≤ {bound}"
        case annotated_types.MinLen():
            return "not empty"
    return None


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    # A section's own keys have their defaults in its own table.
    return "" if isinstance(value, ConfigModel) else f"`{pydantic_core.to_json(value).decode()}`"


def meaning_of_model(model: type[ConfigModel]) -> str:
    """The docstring of the class itself; pydantic's own is not one."""
    return _joined(model.__dict__.get("__doc__") or "")


def meanings_of_fields(model: type[ConfigModel]) -> dict[str, str]:
    """Key -> the string below it in the source, of the class or of one that it extends."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not issubclass(cls, ConfigModel):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = _joined(text)
    return found


def _joined(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    OUTPUT.write_text(page())
