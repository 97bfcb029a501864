"""What is installed: the wheel with its configurations, and dependencies named where they are needed."""

import ast
import importlib.metadata
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fusejax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    name: [Requirement(text) for text in texts]
    for name, texts in {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}.items()
}
"""Extra -> its requirements; "" is what is always installed."""
SHARED = ("fusejax/common", "fusejax/data/records.py", "fusejax/data/tf_example.py", "fusejax/data/tfrecord.py")
# Of packages that share a namespace, or that are not installed with what `make setup` installs.
DISTRIBUTIONS = {
    "google.auth": "google-auth",
    "google.protobuf": "protobuf",
    "tokamax": "tokamax",
    "vllm": "vllm",
}


def named(*extras: str) -> set[str]:
    """The distributions that these extras name, without what they bring along."""
    return {canonicalize_name(each.name) for extra in extras for each in EXTRAS[extra]} - {"fusejax"}


def imported(*places: str) -> set[str]:
    """The distributions that the modules of these files and folders import, lazy imports included."""
    installed = importlib.metadata.packages_distributions()
    found = set()
    for module in {module for place in places for path in files(place) for module in imports(path)}:
        namespace = next((value for key, value in DISTRIBUTIONS.items() if f"{module}.".startswith(f"{key}.")), None)
        found.add(canonicalize_name(namespace or installed[module.partition(".")[0]][0]))
    return found


def files(place: str) -> list[Path]:
    path = ROOT / place
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def imports(path: Path) -> Iterator[str]:
    """The modules of others; a sandboxed program finds its neighbours by their bare names."""
    ours = {"fusejax", "data_pipeline", *(neighbour.stem for neighbour in path.parent.glob("*.py"))}
    for module in modules(path):
        root = module.partition(".")[0]
        if root not in sys.stdlib_module_names and root not in ours:
            yield module


def modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_what_both_programs_share_needs_the_base_alone():
    commands = [f"fusejax/{path.name}" for path in (ROOT / "fusejax").glob("*.py")]
    assert imported(*SHARED, *commands) - named("") <= {"jax"}  # which commands import once they know what to do
    assert not named("") & {"jax", "torch", "vllm"}


def test_each_program_imports_what_its_extras_name():
    # Beside its own, `backend: jax` takes what the trainer is installed with.
    assert imported("data_pipeline") - named("", "sample", "vllm", "ray", "benchmark") == {"flax", "jax"}
    assert imported("fusejax") <= named("", "train", "gpu")


def test_nothing_is_required_that_is_not_imported():
    assert named("", "train", "sample", "ray", "vllm") <= imported("fusejax", "data_pipeline")


def test_versions_are_said_once():
    """But for transformers: vLLM takes none as new as training needs."""
    said = [
        each.name for requirements in EXTRAS.values() for each in requirements if each.specifier and not each.marker
    ]
    assert {name for name in said if said.count(name) > 1} == {"transformers"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in an environment of its own, which finds what it depends on in this one."""
    root = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(root)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = root.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / "venv")], check=True)
    install = [sys.executable, "-m", "pip", "--python", str(root / "venv"), "install", "--quiet", "--no-deps"]
    subprocess.run([*install, str(wheel)], check=True)
    (packages,) = (root / "venv" / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    return root / "venv"


def run(environment: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A program of the environment, started in `folder`, where no clone is to be found."""
    arguments = [environment / "bin" / command[0], *command[1:]]
    return subprocess.run(arguments, cwd=folder, env={"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)


def test_the_wheel_brings_the_recipe(environment: Path, tmp_path: Path):
    listed = run(environment, tmp_path, "fusejax", "configs")
    assert "fusechat3/llama3.1-8b-dpo.yaml\n" in listed.stdout, listed.stderr
    copied = run(environment, tmp_path, "fusejax", "configs", "fusechat3", "models")
    assert copied.returncode == 0, copied.stderr
    for folder in ("fusechat3", "models"):
        ours = {path.name: path.read_bytes() for path in (ROOT / "configs" / folder).iterdir()}
        assert {path.name: path.read_bytes() for path in (tmp_path / "configs" / folder).iterdir()} == ours
    again = run(environment, tmp_path, "fusejax", "configs", "fusechat3/data.yaml")
    assert (again.returncode, again.stderr) == (0, "")
    (tmp_path / "configs" / "fusechat3" / "data.yaml").write_text("mine")
    refused = run(environment, tmp_path, "fusejax", "configs", "fusechat3/data.yaml")
    assert refused.returncode == 2
    assert refused.stderr == "error: configs/fusechat3/data.yaml exists and is another; choose another --output\n"
    assert (tmp_path / "configs" / "fusechat3" / "data.yaml").read_text() == "mine"


def test_planning_knows_the_targets_from_a_wheel(environment: Path, tmp_path: Path):
    program = "from fusejax.planning.architecture import known_architectures; print(len(known_architectures()))"
    found = run(environment, tmp_path, "python", "-c", program)
    assert found.stdout == f"{len(list((ROOT / 'configs/models').iterdir()))}\n", found.stderr


def test_the_wheel_is_typed_and_known_to_vllm(environment: Path, tmp_path: Path):
    (packages,) = (environment / "lib").glob("python*/site-packages")
    assert all((packages / name / "py.typed").exists() for name in ("fusejax", "data_pipeline"))
    (found,) = packages.glob("fusejax-*.dist-info")
    entry_points = importlib.metadata.Distribution.at(found).entry_points
    assert {point.group for point in entry_points} == {"console_scripts", "vllm.general_plugins"}
    assert run(environment, tmp_path, "fusejax", "--version").stdout.startswith(
        f"fusejax {fusejax.__version__} (python "
    )
