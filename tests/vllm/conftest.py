"""A real vLLM in an environment of its own (`make test-vllm`), asked for a tiny model's answers.

The tests themselves run where the rest of the project does, and start what they test as processes: the stage `sample`
with the interpreter of either environment, and vLLM's server.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import prompts
from data_pipeline.config import PipelineConfig
from tests.data_pipeline.helpers import make_checkpoint, write_config, write_jsonl

ROOT = Path(__file__).parents[2]
# On a CPU vLLM else takes half of the memory for its cache, and threads and processes that wait for each other.
SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
# Besides, chunked prefill ends in an error there ("CPU Generator does not use offset") where requests have seeds.
PROMPTS, SAMPLES, TOO_LONG = 120, 5, 7


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """The interpreter of the environment that has vLLM."""
    if "VLLM_PYTHON" not in os.environ:
        pytest.skip("needs vLLM in an environment of its own: make test-vllm")
    return str(Path(os.environ["VLLM_PYTHON"]).absolute())


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the smallest heads that vLLM takes. What it suggests for sampling must play no part."""
    import transformers

    directory = make_checkpoint(tmp_path_factory.mktemp("models") / "tiny", hidden_size=64, head_dim=32)
    suggested = transformers.GenerationConfig.from_pretrained(directory)
    suggested.update(do_sample=True, temperature=0.01, top_k=1, top_p=0.1, repetition_penalty=3.0)
    suggested.save_pretrained(directory)
    return directory


Sample = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def sample(tmp_path: Path, tiny: Path, vllm_python: str) -> Sample:
    """Starts the stage in the folder `output` of `tmp_path`; with a server's URL, or else in process."""
    records = [
        {"id": f"p{n}", "prompt": "x" * 400 if n == TOO_LONG else f"say {n}, then add {n % 9} to it"}
        for n in range(PROMPTS)
    ]
    file = write_jsonl(tmp_path / "prompts.jsonl", records)

    def start(output: str, url: str | None = None, **server: Any) -> subprocess.Popen[str]:
        source: dict[str, Any] = {"name": "s", "model": str(tiny), "temperature": 0.9, "repetition_penalty": 1.05}
        if url is None:
            source["engine"] = {"enforce_eager": True, "max_num_seqs": 16, "enable_chunked_prefill": False}
        else:
            source["server"] = {"url": url, "served_as": "tiny", "concurrency": 16, **server}
        values = {
            "output_dir": str(tmp_path / output),
            "prompts": [{"path": str(file), "dataset": "d", "domain": "instruction"}],
            "sources": [source],
            "sampler": {"backend": "openai" if url else "vllm", "dtype": "float32"},
            "samples_per_prompt": {"instruction": SAMPLES},
            "max_new_tokens": 12,
        }
        if not (tmp_path / output / "prompts.parquet").exists():
            prompts.run(PipelineConfig.model_validate(values))
        config = write_config(tmp_path / f"{output}.yaml", values)
        return subprocess.Popen(
            [sys.executable if url else vllm_python, "-m", "data_pipeline", "sample", "--config", str(config)],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **SETTINGS},
        )  # fmt: skip

    return start


@pytest.fixture(scope="session")
def vllm_server(vllm_python: str, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of vLLM's own server, with the tiny model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny), "--port", str(port),
                "--host", "127.0.0.1", "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager",
                "--max-num-seqs", "16", "--no-enable-chunked-prefill",
            ],
            stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **SETTINGS},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False
