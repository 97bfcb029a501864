"""The rooms and their order: which module may import which. Read from the sources, so that lazy imports count too."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = (
    "prompts",
    "sampling",
    "scoring",
    "selection",
    "shards",
    "distributions",
    "likelihoods",
    "report",
    "importing",
    "benchmarks",
)
"""In order: a stage may import from those before it, never from those after it."""
TRAINER = (
    *("common", "data", "fusion", "distributed", "models", "objectives"),
    *("training", "planning", "evaluation", "merging"),
)
ALLOWED = {
    "common": set(),
    "data": {"common"},
    "fusion": {"common", "data"},
    "distributed": {"common"},
    "models": {"common", "distributed"},
    "objectives": {"common", "distributed", "data"},
    "training": {"common", "data", "fusion", "distributed", "models", "objectives"},
    "planning": {"common", "data", "distributed", "models", "objectives", "training"},
    "evaluation": {"common", "data", "distributed", "models", "training"},
    "merging": {"common", "models", "training"},
}
"""Folder of the trainer -> the folders that it may import from."""


def modules(package: str) -> dict[str, Path]:
    """Dotted name -> file."""
    found = {}
    for path in (ROOT / package).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules("fusejax") | modules("data_pipeline")


def imports(path: Path, *, lazy: bool = True) -> set[str]:
    """The modules of ours that a file imports; without `lazy` only those that are imported with it."""
    tree = ast.parse(path.read_text())
    found = set()
    nodes = ast.walk(tree) if lazy else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (whole & MODULES.keys()) or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys()


def folder(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_no_circles():
    graph = {name: imports(path) - {name} for name, path in MODULES.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("stage", STAGES)
def test_stages_depend_on_earlier_ones_only(stage: str):
    later = set(STAGES[STAGES.index(stage) + 1 :])
    wrong = [
        f"{name} imports {other}"
        for name, path in MODULES.items()
        if name.startswith(f"data_pipeline.{stage}")
        for other in imports(path)
        if other.startswith("data_pipeline.") and folder(other) in later
    ]
    assert not wrong


def test_what_stages_share_knows_no_stage():
    """But for the configuration, which names what stages offer."""
    shared = [name for name in MODULES if name.startswith("data_pipeline.") and folder(name) not in STAGES]
    for name in set(shared) - {"data_pipeline.__main__", "data_pipeline.config", "data_pipeline.domains"}:
        assert not [other for other in imports(MODULES[name]) if folder(other) in STAGES]


@pytest.mark.parametrize("room", TRAINER)
def test_the_trainers_rooms(room: str):
    wrong = [
        f"{name} imports {other}"
        for name, path in MODULES.items()
        if name.startswith(f"fusejax.{room}.")
        for other in imports(path)
        if other.startswith("fusejax.") and folder(other) in TRAINER and folder(other) not in ALLOWED[room] | {room}
    ]
    assert not wrong


DECODES = "data_pipeline.sampling.backends.jax_sampler"
"""The pipeline's one file that knows the trainer's decoder: on TPUs nothing else samples. It is imported lazily."""


def test_the_two_programs_meet_in_what_they_share():
    """The pipeline knows what is common, records and tokens; the trainer knows the pipeline in its evaluation alone."""
    for name, path in MODULES.items():
        others = imports(path)
        if name.startswith("data_pipeline"):
            theirs = {other for other in others if other.startswith("fusejax.") and folder(other) != "common"}
            if name == DECODES:
                assert {folder(other) for other in theirs} == {"models", "distributed", "training"}
            else:
                assert theirs <= {f"fusejax.data.{name}" for name in ("records", "chat", "token_bytes")}, name
            assert DECODES not in imports(path, lazy=False)
        elif folder(name) != "evaluation":
            assert not [other for other in others if other.startswith("data_pipeline")], name


def test_few_modules_at_the_top_of_the_pipeline():
    assert len(list((ROOT / "data_pipeline").glob("*.py"))) <= 6


@pytest.mark.parametrize(
    "module",
    ["fusejax.common.chat_template", "fusejax.data.records", "fusejax.fusion.vocabulary", "data_pipeline.__main__"],
)
def test_neither_jax_nor_torch_comes_along(module: str):
    program = f"import sys, {module}; print([name for name in ('jax', 'torch', 'vllm') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
