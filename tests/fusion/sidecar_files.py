"""Sidecars as the data pipeline's stage `distributions` writes them, and tokenizers that cut as a test wants."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fusejax.data.records import AnswerDistributions, SFTExample, open_shards, write_shards
from fusejax.data.token_bytes import token_bytes

END = "<|end|>"


def byte_level(pieces: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with these pieces (`Ġ` is a space), which come about character by character, the first
    piece first."""
    vocabulary = {name: token for token, name in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for piece in pieces:
        for length in range(2, len(piece) + 1):
            if piece[:length] not in vocabulary:
                vocabulary[piece[:length]] = len(vocabulary)
                merges.append((piece[: length - 1], piece[length - 1]))
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END, "<|start|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)


def distributions(
    name: str, source: str, tokenizer: Any, answer: str, rows: Sequence[dict[int, float]], realised: Sequence[float]
) -> AnswerDistributions:
    """The record of an answer, by probabilities: a row for each token and for the end of the turn."""
    tokens = tokenizer(answer, add_special_tokens=False)["input_ids"]
    pieces = token_bytes(tokenizer)
    width = max(map(len, rows))
    # Where a row has fewer, what fills it up is a special token, which the target does not have.
    nothing = tokenizer.convert_tokens_to_ids("<|start|>") or 0
    top_ids, top = np.full((len(rows), width), nothing, np.uint32), np.full((len(rows), width), -20, np.float16)
    for j, row in enumerate(rows):
        top_ids[j, : len(row)], top[j, : len(row)] = [*row], np.log([*row.values()])
    return AnswerDistributions(
        id=name,
        dataset="d",
        domain="chat",
        source_model=source,
        tokens=np.array(tokens, np.int32),
        logprobs=np.log(realised).astype(np.float16),
        ends=np.cumsum([0, *(len(pieces[token] or b"") for token in tokens)]).astype(np.int32),
        top_ids=top_ids,
        top_logprobs=top,
    )


def write(
    folder: Path, source: str, tokenizer: Any, records: Sequence[AnswerDistributions], data: Path, end: str = END
) -> str:
    """Writes a sidecar of the SFT shards `data`, and returns its name for a configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "tokenizer.json"
    tokenizer.backend_tokenizer.save(str(file))
    facts = {
        "source": source,
        "tokenizer_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "end_of_turn": [tokenizer.convert_tokens_to_ids(end)],
        "data_fingerprint": open_shards(data).fingerprint,
    }
    manifest = {"distributions": {"train": facts}}
    write_shards(folder, "train", records, kind="distributions", num_shards=1, manifest=manifest)
    return str(folder / "train")


def random_sidecar(folder: Path, source: str, tokenizer: Any, data: Path, end: str, seed: int, skip: int = 0) -> str:
    """A sidecar of SFT shards with the likeliest five tokens by chance, the real one among them; every `skip`-th
    example has none."""
    rng = np.random.default_rng(seed)
    records = []
    for index, example in enumerate(open_shards(data)):
        if skip and index % skip == 0:
            continue
        assert isinstance(example, SFTExample)
        answer = example.messages[-1]["content"]
        tokens = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.convert_tokens_to_ids(end)]
        rows = []
        for token in tokens:
            others = rng.choice(np.setdiff1d(np.arange(3, 250), tokens), 4, replace=False).tolist()
            values = sorted(rng.dirichlet(np.ones(6))[:5], reverse=True)
            rows.append(dict(zip(rng.permutation([token, *others]).tolist(), values, strict=True)))
        realised = [row[token] for row, token in zip(rows[:-1], tokens, strict=False)]
        records.append(distributions(example.id, source, tokenizer, answer, rows, realised))
    return write(folder, source, tokenizer, records, data, end)
