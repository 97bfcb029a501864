"""A real vLLM: `make test-vllm` runs these tests in its environment, which has little else; elsewhere none is found."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data_pipeline.helpers import make_checkpoint

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]

# Before vLLM is imported, and for the processes that tests start. On a CPU it else takes half of the memory for its
# cache, and threads and processes that wait for each other.
os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the smallest heads that vLLM takes. What it suggests for sampling must play no part."""
    import transformers

    directory = make_checkpoint(tmp_path_factory.mktemp("models") / "tiny", hidden_size=64, head_dim=32)
    suggested = transformers.GenerationConfig.from_pretrained(directory)
    suggested.update(do_sample=True, temperature=0.01, top_k=1, top_p=0.1, repetition_penalty=3.0)
    suggested.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def vllm_server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of vLLM's own server, which calls the model `tiny`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as output:
        # Chunked prefill ends in an error on CPUs ("CPU Generator does not use offset") where requests have seeds.
        process = subprocess.Popen(
            [
                sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny), "--port", str(port),
                "--host", "127.0.0.1", "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager",
                "--max-num-seqs", "16", "--no-enable-chunked-prefill",
            ],
            stdout=output, stderr=subprocess.STDOUT,
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
