"""A run's tokens are the same files, byte for byte, on any number of hosts, whatever became of earlier attempts."""

import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fusejax.data.records import write_shards
from fusejax.distributed.hosts import HOST_LOST
from tests.data.test_examples import pair
from tests.distributed.processes import Processes, on_hosts
from tests.tiny_runs import train_command

FILES = ("tokens/train.npz", "tokens/eval.npz", "rejected.jsonl", "changed.jsonl")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Pairs of which some are rejected and some changed; too few for evaluation to give every host one."""
    folder = tmp_path_factory.mktemp("data")
    kinds = [
        pair("good", chosen="a 1 2"),
        pair("same", chosen="no"),
        pair("spelled", chosen="<|im_end|>"),
        pair("unordered", scores=(0.1, 0.9)),
        pair("long", prompt="what is " * 60),
        pair("cut", chosen="plus " * 60, rejected="is"),
    ]
    records = [pair(f"{each.id} {i}", **_texts(each)) for i in range(9) for each in kinds]
    write_shards(folder, "train", records, kind="dpo", num_shards=2, manifest={})
    write_shards(folder, "eval", records[4:6], kind="dpo", num_shards=1, manifest={})
    return {"train": str(folder / "train"), "eval": str(folder / "eval")}


def _texts(record: Any) -> dict[str, Any]:
    chosen, rejected, prompt = (turns[0]["content"] for turns in (record.chosen, record.rejected, record.prompt))
    scores = (record.chosen_score, record.rejected_score)
    return {"chosen": chosen, "rejected": rejected, "prompt": prompt, "scores": scores}


def start(world: Path, run: Path, data: dict[str, str], count: int, *options: str, **changes: Any) -> Processes:
    *_, config = train_command(world, run, "dpo", data=data, mesh={"data": count, "fsdp": 1}, **changes)
    script = str(Path(__file__).with_name("tokenizing.py"))
    command = [sys.executable, script, *options, "--config", config]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    return Processes(on_hosts(command, count), run.with_suffix(".output"), environment=environment)


def files(run: Path) -> dict[str, bytes]:
    assert {path.name for path in (run / "tokens").iterdir()} == {"train.npz", "eval.npz"}
    return {name: (run / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def alone(world, data, tmp_path_factory) -> dict[str, bytes]:
    run = tmp_path_factory.mktemp("alone") / "run"
    with start(world, run, data, 1) as process:
        assert process.wait() == [0], process.output(0)
    found = files(run)
    assert found["rejected.jsonl"].count(b"identical_pair") == 9 and b"spelled" in found["changed.jsonl"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("count", "scene"), [(2, "late"), (3, None), (4, None)])
def test_the_number_of_hosts_changes_no_byte(world, data, alone, tmp_path, count, scene):
    with start(world, tmp_path / "run", data, count, *([scene] if scene else [])) as hosts:
        assert hosts.wait() == [0] * count, [hosts.output(i) for i in range(count)]
        assert "train: 36 examples, " in hosts.output(0) and "examples" not in hosts.output(1)
    assert files(tmp_path / "run") == alone


@pytest.mark.slow
def test_killed_while_tokenising(world, data, alone, tmp_path):
    run = tmp_path / "run"
    with start(world, run, data, 3, "waits") as hosts:
        others = [run / "tokens" / f"train-{i:05d}-of-00003.npz" for i in (1, 2)]
        while not ("host 0 waits" in hosts.output(0) and all(path.exists() for path in others)):
            assert hosts.running[0].poll() is None, hosts.output(0)
            time.sleep(0.05)
        hosts.send(0, signal.SIGKILL)
        assert hosts.wait() == [-signal.SIGKILL, HOST_LOST, HOST_LOST]
    assert {path.name for path in (run / "tokens").iterdir()} == {path.name for path in others}
    (run / "tokens" / ".train-00001-of-00003.npz.1.partial").write_text("killed while this was written")
    with start(world, run, data, 2) as hosts:
        assert hosts.wait() == [0, 0], [hosts.output(i) for i in range(2)]
    assert files(run) == alone


@pytest.mark.slow
def test_hosts_that_do_not_share_a_folder(world, data, tmp_path):
    """Also where the other has one of an earlier attempt, and so finds some of what it looks for."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with start(world, tmp_path / "b" / "run", data, 1) as process:
        assert process.wait() == [0], process.output(0)
    for path in (tmp_path / "b" / "run" / "tokens").iterdir():
        path.unlink()
    message = "output_dir run: host {} does not find what host {} wrote there; it must be in a place that all hosts"
    for earlier, (reader, writer) in ((False, (1, 0)), (True, (0, 1))):
        where = [tmp_path / "a", tmp_path / ("b" if earlier else "c")]
        (tmp_path / "c").mkdir(exist_ok=True)
        (tmp_path / "a.yaml").unlink(missing_ok=True)
        hosts = start(world, tmp_path / "a" / "run", data, 2)
        config = tmp_path / "a" / "run.yaml"
        config.write_text(config.read_text().replace(f"output_dir: {tmp_path}/a/run", "output_dir: run"))
        commands = [["env", "-C", str(folder), *command] for folder, command in zip(where, hosts.commands, strict=True)]
        with Processes(commands, tmp_path / f"output-{earlier}", environment=hosts.environment) as hosts:
            assert hosts.wait() == [2, 2], [hosts.output(i) for i in range(2)]
            assert message.format(reader, writer) in hosts.errors()[reader], hosts.errors()
