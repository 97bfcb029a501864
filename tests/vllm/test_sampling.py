"""The stage `sample` with a real vLLM: in process and served, through faults and SIGKILL, always the same table."""

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_pipeline.config import PipelineConfig, SamplerConfig, SourceConfig
from data_pipeline.prompts import stage as prompts
from data_pipeline.sampling import stage as stage
from data_pipeline.sampling.sampler import Answer, Request, Sampling
from tests.data_pipeline.helpers import write_config, write_jsonl
from tests.vllm.proxy import FAULTS, faulty_proxy

ROOT = Path(__file__).parents[2]
PROMPTS, SAMPLES, TOO_LONG = 60, 5, 7
COUNT = (PROMPTS - 1) * SAMPLES
ENGINE = {"enforce_eager": True, "max_num_seqs": 16, "enable_chunked_prefill": False}

Sample = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Sample:
    """Starts the stage in a folder; with a server's URL, or else in process. `source` has more of the source's keys."""
    records = [
        {"id": f"p{n}", "prompt": "x" * 400 if n == TOO_LONG else f"say {n}, then add {n % 9} to it"}
        for n in range(PROMPTS)
    ]
    file = write_jsonl(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", records)

    def start(folder: Path, url: str | None = None, more: Any = (), env: Any = (), **server: Any):
        source: dict[str, Any] = {"name": "s", "model": str(tiny), "temperature": 0.9, "repetition_penalty": 1.05}
        if url is None:
            source["engine"] = ENGINE
        else:
            source["server"] = {"url": url, "served_as": "tiny", "concurrency": 16, **server}
        values = {
            "output_dir": str(folder),
            "prompts": [{"path": str(file), "dataset": "d", "domain": "instruction"}],
            "sources": [source, *more],
            "sampler": {"backend": "openai" if url else "vllm", "dtype": "float32"},
            "samples_per_prompt": {"instruction": SAMPLES},
            "max_new_tokens": 12,
        }
        if not (folder / "prompts.parquet").exists():
            prompts.run(PipelineConfig.model_validate(values))
        config = write_config(folder.with_suffix(".yaml"), values)
        return subprocess.Popen(
            [sys.executable, "-m", "data_pipeline", "sample", "--config", str(config)],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | dict(env),
        )  # fmt: skip

    return start


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


def table(folder: Path, name: str = "s") -> Path:
    return folder / f"samples/{name}.parquet"


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


@pytest.fixture(scope="session")
def served(sample: Sample, tmp_path_factory: pytest.TempPathFactory, vllm_server: str) -> Path:
    """A folder that one unbroken run against the server filled."""
    folder = tmp_path_factory.mktemp("runs") / "served"
    output = finish(sample(folder, vllm_server))
    assert f"{PROMPTS * SAMPLES:,} answers, {COUNT:,} of them new" in output
    assert "1 prompts rejected {'prompt_too_long': 1}" in output
    return folder


@pytest.fixture(scope="session")
def in_process(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that one unbroken run with the engine in process filled."""
    folder = tmp_path_factory.mktemp("runs") / "in_process"
    finish(sample(folder))
    return folder


def test_in_process_and_served_are_the_same(in_process: Path, served: Path):
    found, other = pl.read_parquet(table(in_process)), pl.read_parquet(table(served))
    assert found["engine"].drop_nulls().str.contains(r"^vllm \d+\.\d+\S*$").all()
    assert other["engine"].drop_nulls().str.contains(r"^vllm \d+\.\d+\S* server$").all()
    assert found.drop("engine").equals(other.drop("engine"))


def test_the_table_is_whole(in_process: Path):
    frame = pl.read_parquet(table(in_process))
    assert frame.schema == stage.SCHEMA
    order = pl.read_parquet(in_process / "prompts.parquet")["id"]
    assert sorted(order) == sorted(f"p{n}" for n in range(PROMPTS))
    expected = [(name, index) for name in order for index in range(SAMPLES)]
    assert frame.select("prompt_id", "sample_index").rows() == expected
    asked = frame.filter(pl.col("prompt_id") != f"p{TOO_LONG}")
    assert asked["key"].n_unique() == asked["seed"].n_unique() == COUNT
    assert set(asked["finish_reason"]) == {"stop", "length"}
    assert asked["completion_tokens"].is_between(1, 12).all()
    assert (asked["truncated"] == (asked["finish_reason"] == "length")).all()
    assert (asked["completion_tokens"] == 12).filter(asked["truncated"]).all()
    refused = frame.filter(prompt_id=f"p{TOO_LONG}")
    assert refused["error"].str.starts_with("prompt_too_long: ").all() and set(refused["finish_reason"]) == {"error"}
    # The samples of a prompt differ: each has its own seed, and the model's own suggestion (top_k=1) plays no part.
    assert asked.group_by("prompt_id").agg(pl.col("text").n_unique())["text"].mean() > 0.8 * SAMPLES


def test_in_process_killed_and_resumed(sample: Sample, tmp_path: Path, in_process: Path):
    folder, generator = tmp_path / "killed", random.Random(0)
    for _ in range(2):
        kill_while_sampling(sample(folder), folder, generator, COUNT // 3)
    assert f"{COUNT} of them new" not in finish(sample(folder))
    assert table(folder).read_bytes() == table(in_process).read_bytes()
    assert "up to date" in finish(sample(folder))


def test_served_through_faults(sample: Sample, tmp_path: Path, vllm_server: str, served: Path):
    with faulty_proxy(vllm_server, share=0.3, seed=0) as proxy:
        finish(sample(tmp_path / "faulty", proxy.url))
    assert set(proxy.faults) == set(FAULTS) and proxy.faults.total() > COUNT / 5
    assert proxy.passed == COUNT  # Each answer arrived once.
    assert table(tmp_path / "faulty").read_bytes() == table(served).read_bytes()


def test_served_through_faults_killed_and_resumed(sample: Sample, tmp_path: Path, vllm_server: str, served: Path):
    folder, generator = tmp_path / "killed", random.Random(1)
    with faulty_proxy(vllm_server, share=0.2, seed=2) as proxy:
        for _ in range(4):
            kill_while_sampling(sample(folder, proxy.url), folder, generator, COUNT // 10)
        finish(sample(folder, proxy.url))
    # What was kept was not asked again: only what was under way at a kill, 16 requests at most.
    assert COUNT <= proxy.passed <= COUNT + 4 * 16
    assert table(folder).read_bytes() == table(served).read_bytes()


def test_two_in_process_beside_one_served(
    sample: Sample, tmp_path: Path, tiny: Path, vllm_server: str, in_process: Path, served: Path
):
    """As on GPUs, each engine has a process of its own, which ends before the next engine starts."""
    more = [
        {"name": name, "model": str(tiny), "temperature": heat, "top_p": 0.9, "backend": "vllm", "engine": ENGINE}
        for name, heat in (("hot", 1.2), ("greedy", 0))
    ]
    folder = tmp_path / "three"
    finish(sample(folder, vllm_server, more=more, env={"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}))
    assert table(folder).read_bytes() == table(served).read_bytes()
    hot, greedy = (pl.read_parquet(table(folder, name)) for name in ("hot", "greedy"))
    alike = {
        name: frame.group_by("prompt_id").agg(pl.col("text").n_unique())["text"].max()
        for name, frame in (("hot", hot), ("greedy", greedy))
    }
    assert alike["greedy"] == 1 < alike["hot"]
    assert set(hot["temperature"].drop_nulls()) == {1.2}
    assert not set(hot["seed"].drop_nulls()) & set(greedy["seed"].drop_nulls())


def test_what_the_engine_refuses_is_an_error_of_its_own(tiny: Path):
    from data_pipeline.sampling.backends.vllm_sampler import VllmSampler

    sampler = VllmSampler(SourceConfig(name="s", model=str(tiny), engine=ENGINE), tiny, "float32", 64)
    asked = {"fine": (5, 6), "long": (5,) * 65, "unknown": (5, 10**6), "last": (7,)}
    requests = [Request(key, prompt, 1, 4, Sampling(0.8)) for key, prompt in asked.items()]
    found = {request.key: answer for batch in sampler.generate(requests, {"last"}) for request, answer in batch}
    sampler.close()
    assert found.keys() == {"fine", "long", "unknown"}
    assert found["fine"].error is None
    assert all(str(found[key].error).startswith("refused: ") for key in ("long", "unknown"))
    assert "jax" not in sys.modules


def test_each_request_is_sampled_in_its_own_way(tiny: Path, vllm_server: str):
    """In one engine at once. Greedy ones get the answers that transformers gives; a server gives all the same."""
    from data_pipeline.sampling.backends.openai_sampler import OpenaiSampler
    from data_pipeline.sampling.backends.transformers_sampler import TransformersSampler
    from data_pipeline.sampling.backends.vllm_sampler import VllmSampler

    def found(sampler: Any, wanted: list[Request]) -> dict[str, Answer]:
        return {request.key: answer for batch in sampler.generate(wanted, ()) for request, answer in batch}

    prompts = [tuple(range(first, first + 9)) for first in range(5, 45, 8)]
    here = VllmSampler(SourceConfig(name="s", model=str(tiny), engine=ENGINE), tiny, "float32", 64)
    free = found(here, [Request(str(p), prompt, 1, 20, Sampling(0)) for p, prompt in enumerate(prompts)])
    stop = tuple(match[0] for answer in free.values() if (match := re.search("[!-~]", answer.text[1:])))
    ways = {
        "greedy": Sampling(0),
        "stopped": Sampling(0, stop=stop),
        "penalised": Sampling(0, presence_penalty=-2.0, frequency_penalty=-1.0, repetition_penalty=1.1),
        "hot": Sampling(1.5),
        "stopped hot": Sampling(1.0, top_k=40, stop=("a", "e", " ")),
        "cold": Sampling(0.01),
    }
    wanted = [
        Request(f"{name} {p}", prompt, 7, 20, sampling)
        for p, prompt in enumerate(prompts)
        for name, sampling in ways.items()
    ]
    answers = found(here, wanted)
    here.close()
    server = {"url": vllm_server, "served_as": "tiny"}
    client = OpenaiSampler(SourceConfig(name="s", model=str(tiny), backend="openai", server=server), 64)
    assert found(client, wanted) == answers
    client.close()
    other = TransformersSampler(SamplerConfig(dtype="float32"), SourceConfig(name="s", model=str(tiny)), tiny)
    greedy = [request for request in wanted if request.sampling.temperature == 0]
    theirs = found(other, greedy)

    def compared(answer: Answer) -> tuple[str, str, int]:
        # Bytes that are no character become any number of these.
        return answer.text.replace("\ufffd", ""), answer.finish_reason, answer.completion_tokens

    assert {key: compared(theirs[key]) for key in theirs} == {key: compared(answers[key]) for key in theirs}

    def texts(name: str) -> list[str]:
        return [answers[f"{name} {p}"].text for p in range(len(prompts))]

    assert texts("greedy") == texts("cold") == [free[str(p)].text for p in range(len(prompts))]
    assert [name for name in ("stopped", "penalised", "hot") if texts(name) == texts("greedy")] == []
    assert stop and not any(each in text for each in stop for text in texts("stopped"))
    assert not any(each in text for each in "ae " for text in texts("stopped hot"))
