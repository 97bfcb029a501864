"""The documentation beside the code: what it names exists, what exists is named, its examples run."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from data_pipeline.__main__ import main as data_pipeline
from data_pipeline.config import PipelineConfig, ServerConfig, SourceConfig
from data_pipeline.importing.config import ImportConfig
from fusejax.__main__ import COMMANDS
from fusejax.common.cli import load_config
from fusejax.config import EvaluateConfig, TrainConfig
from fusejax.data.records import open_shards
from fusejax.models.decoder.config import _DEFAULTS as FAMILIES

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "tpu/README.md", "benchmarks/README.md", "examples/*/README.md")
    for page in ROOT.glob(pattern)
)
PACKAGES = ("fusejax", "data_pipeline")
FOLDERS = (*PACKAGES, "quickstart", "examples", "benchmarks", "configs", "docs", "tests", "tpu", ".ci")
FILES = [str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
EXAMPLE = re.compile(r"NAME|FILE|SPLIT|SOURCE|COMMAND|correct_only|exact|hinge|commonsense|poetry|my_reward")
"""Names of what a guide tells to write."""
GUIDE = (ROOT / "docs/adding/family.md").read_text()


def tree() -> set[str]:
    """The files of the tree in docs/architecture.md, as paths."""
    text = (ROOT / "docs/architecture.md").read_text()
    block = text.split("## The tree")[1].split("```")[1]
    folders: list[str] = []
    found = set()
    for line in block.splitlines():
        if not line.strip():
            continue
        name, _, comment = line.strip().partition(" ")
        assert comment.strip(), f"{name} has no comment"
        del folders[(len(line) - len(line.lstrip())) // 2 :]
        if name.endswith("/"):
            folders.append(name)
        else:
            found.add("".join(folders) + name)
    return found


def test_the_tree_names_every_file():
    files = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert tree() == {file for file in files if not file.endswith("__init__.py")}


def code(page: Path) -> str:
    """What a page has between backticks, a span or a block a line."""
    text = page.read_text()
    blocks = re.findall(r"^ *```.*?^ *```", text, re.MULTILINE | re.DOTALL)
    for block in blocks:
        text = text.replace(block, "")
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", text)])


def paths(page: Path) -> Iterator[str]:
    """The paths into the repository that a page names."""
    folders = "|".join(map(re.escape, FOLDERS))
    for path in re.findall(rf"(?<![\w/.~$-])(?:{folders})/[\w./-]*", code(page)):
        if not EXAMPLE.search(path):
            yield path.rstrip(".")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_and_modules_that_a_page_names_exist(page: Path):
    assert [path for path in paths(page) if not (ROOT / path).exists()] == []
    modules = re.findall(r"python -m ([\w.]+)", code(page))
    assert [each for each in modules if not EXAMPLE.search(each) and importlib.util.find_spec(each) is None] == []
    commands = set(re.findall(r"(?:^|\$ )fusejax (\w+)", code(page), re.MULTILINE))
    assert commands <= {*COMMANDS, "COMMAND"}
    # Inside a paragraph about one folder, its name need not be repeated.
    scripts = {script for script in re.findall(r"[\w./-]+\.py\b", code(page)) if not EXAMPLE.search(script)}
    assert {script for script in scripts if not any(f"/{file}".endswith(f"/{script}") for file in FILES)} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(page: Path):
    """`make docs` checks those within docs/, and their anchors; this the others."""
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_page_is_in_the_navigation():
    def files(entry) -> Iterator[str]:
        for value in entry if isinstance(entry, list) else entry.values() if isinstance(entry, dict) else [entry]:
            yield from [value] if isinstance(value, str) else files(value)

    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(files(navigation)) == sorted(
        str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")
    )


def test_the_configuration_reference_is_up_to_date():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/configuration.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs/configuration.md").read_text() == module.page(), "run: python docs/configuration.py"
    without = re.findall(r"^\| (`\w+`) .*\|  \|$", module.page(), re.MULTILINE)
    assert not without, "a string below the key in its model says what it means"


def test_readme_is_short_and_names_the_families():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    table = text.split("| family |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == FAMILIES.keys()


def test_the_guide_to_families_shows_lines_of_the_code():
    """Of the file that it has named last, whatever their indentation."""

    def lines(text: str) -> str:
        return "\n".join(line.strip() for line in text.splitlines())

    shown, file = 0, Path()
    for path, block in re.findall(r"`((?:fusejax|tests)/[\w./]+\.py)`|^ *```python\n(.*?)^ *```", GUIDE, re.M | re.S):
        file = ROOT / path if path else file
        assert lines(block) in lines(file.read_text()), f"{file} has not: {block}"
        shown += bool(block)
    assert shown >= 8


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def test_own_data_trains(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The commands, as they stand, with a tiny model; then the shards that the Python program writes."""
    chats = [
        {"messages": [{"role": "user", "content": f"what is {n}"}, {"role": "assistant", "content": "one"}]}
        for n in range(60)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    monkeypatch.chdir(tmp_path)
    command, *_ = (block.splitlines()[0] for block in blocks("docs/own-data.md", ""))
    assert f"\n{command}\n" in (ROOT / "README.md").read_text(), "the README begins with the same command"
    config, mixture, *_ = blocks("docs/own-data.md", "yaml")
    module, *arguments = command.removeprefix("python -m ").split()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, env=environment)
    (tmp_path / "mine.yaml").write_text(config)
    settings = [f"model={world / 'model'}", "max_length=64", "dtype.compute=float32", "epochs=1"]
    train = [sys.executable, "-m", "fusejax.train", "--config", "mine.yaml", *settings]
    subprocess.run(train, check=True, env=environment)
    assert (tmp_path / "runs/mine/checkpoints/4").is_dir()
    program, _ = blocks("docs/own-data.md", "python")
    exec(compile(program, "own-data.md", "exec"), {})
    assert len(open_shards("data/sft/train")) == 40 and len(open_shards("data/dpo/train")) == 1
    (tmp_path / "import.yaml").write_text(mixture)
    assert len(load_config(ImportConfig, tmp_path / "import.yaml", []).data) == 4


def test_own_data_is_a_data_configuration(tmp_path: Path):
    _, _, config, given, *_ = blocks("docs/own-data.md", "yaml")
    (tmp_path / "data.yaml").write_text(config + given)
    loaded = load_config(PipelineConfig, tmp_path / "data.yaml", [])
    assert [source.name for source in loaded.answerers] == ["qwen", "llama", "people"]


def test_configurations_of_servers():
    *sources, body = (yaml.safe_load(text) for text in blocks("docs/servers.md", "yaml"))
    read = [SourceConfig.model_validate(source) for source in sources]
    assert [source.chat_server is not None for source in read] == [False, False, True, True, True]
    assert ServerConfig(url="http://host/v1", **body).extra_body["seed"] is None


def test_judged_answers_of_ones_own_are_selected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (config,) = (block for block in blocks("docs/own-data.md", "yaml") if "where:" in block)
    (tmp_path / "data.yaml").write_text(config)
    rows = [
        {"question": f"Name {number}.", "reply": f"{by} {number}", "by": by, "score": score}
        for number in range(30)
        for by, score in (("ann", 0.5), ("bob", number / 30))
    ]
    (tmp_path / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data_pipeline(["run", "--config", "data.yaml"])
    # All but the one prompt whose answers are worth the same.
    splits = [f"out/judged/{kind}/{split}" for kind in ("sft", "dpo") for split in ("train", "eval")]
    assert sum(map(len, map(open_shards, splits))) == 29


def test_the_evaluation_guide_shows_a_configuration(tmp_path: Path):
    (config,) = blocks("docs/evaluation.md", "yaml")
    (tmp_path / "evaluate.yaml").write_text(config)
    assert load_config(EvaluateConfig, tmp_path / "evaluate.yaml", []).models["mine"] == "runs/mine"


def test_the_readme_configuration_is_one(tmp_path: Path):
    (config,) = blocks("README.md", "yaml")
    (tmp_path / "mine.yaml").write_text(config)
    assert load_config(TrainConfig, tmp_path / "mine.yaml", []).task == "sft"


def test_the_two_rounds_of_wrpo_are_configurations(tmp_path: Path):
    second, *_ = blocks("docs/wrpo.md", "yaml")
    first = second.replace(", target: target}", "}").replace("  - {name: target, model: runs/mine/sft-export}", "")
    for round, text in (("first", first), ("second", second)):
        (tmp_path / f"{round}.yaml").write_text(text)
    loaded = [load_config(PipelineConfig, tmp_path / f"{round}.yaml", []) for round in ("first", "second")]
    assert [config.domains["mine"].rule.target for config in loaded] == [None, "target"]
    assert loaded[1].sources[:2] == loaded[0].sources and len(loaded[1].sources) == 3
