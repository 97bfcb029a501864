"""The stage `sample` with a real vLLM: in process and served, through faults and SIGKILL, always the same table."""

import json
import random
import subprocess
import time
from pathlib import Path

import polars as pl
import pytest

from data_pipeline import sample as stage
from tests.vllm.conftest import PROMPTS, ROOT, SAMPLES, SETTINGS, TOO_LONG, Sample
from tests.vllm.proxy import FAULTS, faulty_proxy

COUNT = (PROMPTS - 1) * SAMPLES


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def table(folder: Path) -> Path:
    return folder / "samples/s.parquet"


def kept(folder: Path) -> int:
    """How many answers the journal holds; it is far from becoming a part file."""
    journal = folder / "samples/.answers/s/journal.jsonl"
    if not journal.exists():
        return 0
    return sum(len(json.loads(line)) for line in journal.read_bytes().split(b"\n")[:-1])


def kill_while_sampling(process: subprocess.Popen[str], folder: Path, generator: random.Random, most: int) -> None:
    """SIGKILL once so many answers more are kept, and a random moment later."""
    wanted, deadline = generator.randint(1, most), time.monotonic() + 300
    while kept(folder) < wanted:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.002)
    time.sleep(generator.uniform(0, 0.02))
    assert process.poll() is None, "the run ended before it was killed"
    process.kill()
    process.communicate()


@pytest.fixture
def unbroken(sample: Sample, tmp_path: Path, vllm_server: str) -> Path:
    finish(sample("unbroken", vllm_server))
    return tmp_path / "unbroken"


def check_whole(frame: pl.DataFrame) -> None:
    assert frame.schema == stage.SCHEMA
    expected = [(f"p{n}", index) for n in range(PROMPTS) for index in range(SAMPLES)]
    assert frame.select("prompt_id", "sample_index").rows() == expected
    asked = frame.filter(pl.col("prompt_id") != f"p{TOO_LONG}")
    assert asked["key"].n_unique() == asked["seed"].n_unique() == COUNT
    assert set(asked["finish_reason"]) == {"stop", "length"}
    assert asked["completion_tokens"].is_between(1, 12).all()
    assert (asked["flaw"].eq_missing("truncated") == (asked["finish_reason"] == "length")).sum() > 0.9 * COUNT
    refused = frame.filter(prompt_id=f"p{TOO_LONG}")
    assert refused["error"].str.starts_with("prompt_too_long: ").all() and set(refused["finish_reason"]) == {"error"}
    # The samples of a prompt differ: each has its own seed, and the model's own suggestion (top_k=1) plays no part.
    assert asked.group_by("prompt_id").agg(pl.col("text").n_unique())["text"].mean() > 0.8 * SAMPLES


def test_in_process_and_served_are_the_same(sample: Sample, tmp_path: Path, unbroken: Path):
    output = finish(sample("process"))
    assert f"{PROMPTS * SAMPLES:,} answers, {COUNT:,} of them new" in output
    assert "1 prompts rejected {'prompt_too_long': 1}" in output
    found, served = pl.read_parquet(table(tmp_path / "process")), pl.read_parquet(table(unbroken))
    for frame, engine in ((found, r"^vllm \d+\.\d+\S*$"), (served, r"^vllm \d+\.\d+\S* server$")):
        check_whole(frame)
        assert frame["engine"].drop_nulls().str.contains(engine).all()
    assert found.drop("engine").equals(served.drop("engine"))
    # Going on with the other backend asks nothing again.
    assert "up to date" in finish(sample("process"))
    assert "up to date" in finish(sample("unbroken"))


def test_in_process_killed_and_resumed(sample: Sample, tmp_path: Path):
    finish(sample("whole"))
    generator = random.Random(0)
    for _ in range(2):
        kill_while_sampling(sample("killed"), tmp_path / "killed", generator, COUNT // 3)
    output = finish(sample("killed"))
    assert f"{COUNT} of them new" not in output
    assert table(tmp_path / "killed").read_bytes() == table(tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("seed", [0, 1])
def test_served_through_faults(sample: Sample, tmp_path: Path, vllm_server: str, unbroken: Path, seed: int):
    with faulty_proxy(vllm_server, share=0.3, seed=seed) as proxy:
        finish(sample("faulty", proxy.url))
    assert set(proxy.faults) == set(FAULTS) and proxy.faults.total() > COUNT / 5
    assert proxy.passed == COUNT  # Each answer arrived once.
    assert table(tmp_path / "faulty").read_bytes() == table(unbroken).read_bytes()


def test_served_through_faults_killed_and_resumed(sample: Sample, tmp_path: Path, vllm_server: str, unbroken: Path):
    generator = random.Random(1)
    with faulty_proxy(vllm_server, share=0.2, seed=2) as proxy:
        for _ in range(6):
            kill_while_sampling(sample("killed", proxy.url), tmp_path / "killed", generator, COUNT // 10)
        finish(sample("killed", proxy.url))
    # What was kept was not asked again: only what was under way at a kill, 16 requests at most.
    assert COUNT <= proxy.passed <= COUNT + 6 * 16
    assert table(tmp_path / "killed").read_bytes() == table(unbroken).read_bytes()


PROGRAM = """
import json, sys
from pathlib import Path
from data_pipeline.config import SourceConfig
from data_pipeline.samplers.base import Request
from data_pipeline.samplers.vllm_sampler import VllmSampler

source = SourceConfig(name="s", model=sys.argv[1], engine={"enforce_eager": True})
sampler = VllmSampler(source, Path(sys.argv[1]), "float32", 64)
prompts = {"fine": (5, 6), "long": (5,) * 65, "unknown": (5, 10**6), "last": (7,)}
wanted = [Request(key, prompt, 1, 4) for key, prompt in prompts.items()]
found = {request.key: vars(answer) for batch in sampler.generate(wanted, {"last"}) for request, answer in batch}
sampler.close()
assert "jax" not in sys.modules
print(json.dumps(found))
"""


def test_what_the_engine_refuses_is_an_error_of_its_own(vllm_python: str, tiny: Path):
    done = subprocess.run(
        [vllm_python, "-c", PROGRAM, str(tiny)], cwd=ROOT, env=SETTINGS, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == {"fine", "long", "unknown"}
    assert found["fine"]["error"] is None
    assert all(found[key]["error"].startswith("refused: ") for key in ("long", "unknown"))
