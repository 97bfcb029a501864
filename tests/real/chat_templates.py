"""Chat templates of real models: out of TRL, which is installed, and of two packages of Python's package index.

They are not ours to ship, so they are downloaded once, to `$XDG_CACHE_HOME/fusejax/chat_templates` (by default below
`~/.cache`), and checked against their SHA-256. Each comes with a tokenizer made for it, of bytes and the special tokens
that the template names: what these tests look at does not depend on the vocabulary.
"""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.resources import files
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fusejax.common.files import temporary_folder

PACKAGES = {
    "axolotl==0.19.0": "f28eb3ad3709975eec4adfe13307dd980c7e7917cc43cb03f2c6f26c007135cc",
    "llama-cpp-python==0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
}
"""Package -> SHA-256 of its wheel or source distribution."""

_SPECIAL = re.compile(
    r"<[|｜][^|｜<>\n]{1,40}[|｜]>|<\|[a-z_]+>|<[a-z_]+\|>|\[\|[^|\]]+\|\]"  # <|im_end|> <|turn> <turn|> [|endofturn|]
    r"|<seed:[a-z_:]+>|<SPECIAL_\d+>|</?[a-z_]+>|\[/?[A-Z_]+\]|\]~b\]|\[e~\["
)


def read() -> dict[str, str]:
    """`package/model` -> the template."""
    found = {}
    for name, text in _texts():
        where, path = name.split("/", 1)[0], Path(name)
        package = "llama.cpp" if "llama.cpp" in name else where
        found[f"{package}/{path.stem}"] = text
    return found


def _texts() -> list[tuple[str, str]]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fusejax" / "chat_templates"
    if not cache.exists():
        with temporary_folder(cache.parent) as folder:
            for package, digest in PACKAGES.items():
                (folder / "requirements.txt").write_text(f"{package} --hash=sha256:{digest}\n")
                options = ["--no-deps", "--dest", str(folder), "--requirement", str(folder / "requirements.txt")]
                subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *options], check=True)
            texts = folder / "chat_templates"
            texts.mkdir()
            for archive in (*folder.glob("*.whl"), *folder.glob("*.tar.gz")):
                for name, text in _inside(archive):
                    (texts / name.replace("/", "%")).write_text(text)
            texts.rename(cache)
    trl = files("trl") / "chat_templates"
    return [
        *((path.name.replace("%", "/"), path.read_text()) for path in sorted(cache.iterdir())),
        *((f"trl/{path.name}", path.read_text()) for path in sorted(trl.iterdir(), key=str) if ".jinja" in path.name),
    ]


def _inside(archive: Path) -> list[tuple[str, str]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            names = [name for name in wheel.namelist() if name.endswith(".jinja")]
            return [(name, wheel.read(name).decode()) for name in names]
    with tarfile.open(archive) as source:
        members = [
            member for member in source if member.name.endswith(".jinja") and "/models/templates/" in member.name
        ]
        return [(member.name.split("/", 1)[1], source.extractfile(member).read().decode()) for member in members]  # type: ignore[union-attr]


def tokenizer_for(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are bytes, and the special tokens that the template names; tags of thoughts are added
    tokens, but not special ones, as in Qwen's and DeepSeek's tokenizers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = sorted({*_SPECIAL.findall(template), "<bos>", "<eos>"})
    tokenizer.add_tokens([AddedToken(name, special="think" not in name, normalized=False) for name in names])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")
    wrapped.chat_template = template
    return wrapped
