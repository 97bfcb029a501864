"""The run's examples as tokens, made by all hosts together; and what became of them, in lines and files.

Each host tokenises a part of the examples. What the others than host 0 have made lies beside the split's file, as
`train-00001-of-00004.npz`, until host 0 has joined it to the whole: the same on any number of hosts.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath
from transformers import PreTrainedTokenizerBase

from fusejax.common.cli import UserError, note
from fusejax.common.files import write_text
from fusejax.config import DistributionFusion, TrainConfig
from fusejax.data.chat import load_tokenizer, turn_end
from fusejax.data.cores import tokenize_on_all_cores
from fusejax.data.examples import Tokenized, check_any_kept, joined, parts
from fusejax.data.records import Shards, open_shards
from fusejax.distributed.hosts import Hosts
from fusejax.fusion.answers import describe
from fusejax.fusion.chunks import with_chunks
from fusejax.fusion.sidecars import open_sidecars
from fusejax.fusion.soft_targets import Rules, with_soft_targets
from fusejax.models.huggingface import checkpoint as huggingface
from fusejax.training import tokens
from fusejax.training.identity import tokenizer_fingerprint
from fusejax.training.start import check_tokens


def open_data(config: TrainConfig) -> dict[str, Shards]:
    """The examples of each split.

    Raises:
      UserError: as `open_shards`; or they are for another task.
    """
    return {split: _open(config, split, path) for split, path in config.data if path is not None}


def _open(config: TrainConfig, split: str, path: str) -> Shards:
    records = open_shards(path)
    if records.kind != config.record_kind:
        loss = f" with the loss {config.preference.loss}, which takes {config.record_kind}" if config.preference else ""
        raise UserError(f"data.{split} {path} holds examples for {records.kind}, but the task is {config.task}{loss}")
    return records


def fusion_identity(config: TrainConfig, data: Mapping[str, Shards]) -> dict[str, str]:
    """What decides what is fused, besides what decides the tokens; nothing without explicit fusion.

    Raises:
      UserError: as `open_sidecars`, or `fusion.choose` names no source.
    """
    if config.fusion is None:
        return {}
    sidecars = open_sidecars(config.fusion.sidecars, data["train"])
    names = [sidecar.source for sidecar in sidecars]
    fusion, known = config.fusion, ["mince", *names]
    rules: tuple[Any, ...] = (fusion.loss, fusion.choose)
    if isinstance(fusion, DistributionFusion):
        known.insert(1, "avgce")
        rules = dataclasses.astuple(_rules(fusion))
    if fusion.choose not in known:
        raise UserError(f"fusion.choose: {fusion.choose!r} is none of {', '.join(known)}")
    return {
        **{f"sidecar of {sidecar.source}": sidecar.fingerprint for sidecar in sidecars},
        "fusion": json.dumps([names, rules]),
    }


def _rules(fusion: DistributionFusion) -> Rules:
    return Rules(fusion.choose, fusion.top_k, fusion.tail, fusion.temperature)


def _with_fused(
    tokenized: Tokenized,
    config: TrainConfig,
    records: Shards,
    tokenizer: PreTrainedTokenizerBase,
    stops: list[int],
    identity: dict[str, str],
    hosts: Hosts,
) -> Tokenized:
    """The examples with soft targets or chunks, if the run has explicit fusion."""
    if config.fusion is None:
        return tokenized
    end = turn_end(tokenizer, stops)
    if end is None:
        raise UserError(f"model {config.model}: its chat template takes no answer, so that nothing can be fused")
    sidecars = open_sidecars(config.fusion.sidecars, records)
    for sidecar in sidecars:
        if sidecar.fingerprint != identity.get(f"sidecar of {sidecar.source}"):
            where = f"fusion.sidecars {sidecar.shards.name}"
            raise UserError(f"{where}: host {hosts.index} finds another sidecar there than host 0 at the start")
    if isinstance(config.fusion, DistributionFusion):
        return with_soft_targets(tokenized, sidecars, tokenizer, end, _rules(config.fusion))
    return with_chunks(tokenized, sidecars, tokenizer, end, config.fusion.choose)


def missing(config: TrainConfig, identity: dict[str, str], *, resumes: bool) -> list[str]:
    """The splits that are to be tokenised, as there are no tokens of an earlier attempt at this run.

    What such an attempt did not come to join is deleted.

    Raises:
      UserError: the run `resumes`, and its tokens are damaged: new ones might be others.
    """
    folder = epath.Path(config.output_dir) / "tokens"
    for part in folder.iterdir() if folder.exists() else ():
        if "-of-" in part.name:  # hidden, too, where an attempt was killed while it wrote one
            part.unlink(missing_ok=True)
    found = []
    for split, path in config.data:
        try:
            if path is not None and tokens.load(folder / f"{split}.npz", identity) is None:
                found.append(split)
        except UserError:
            if resumes:
                raise
            found.append(split)
    return found


def tokenize(config: TrainConfig, splits: list[str], identity: dict[str, str], stops: list[int], hosts: Hosts) -> None:
    """Tokenises splits, with the tokenizer in the run's folder, and keeps the tokens there.

    Args:
      splits: as of `missing`.
      identity: what the tokens are made from.
      stops: tokens that stop generation.
      hosts: all of them call this.

    Raises:
      UserError: not one example of a split can be kept; or a host finds other files than host 0.
    """
    output_dir = epath.Path(config.output_dir)
    tokenizer = load_tokenizer(huggingface.local_files(output_dir / "model"))
    if tokenizer_fingerprint(tokenizer) != identity["tokenizer"]:
        raise UserError(f"{output_dir}/model: host {hosts.index} finds another tokenizer there than that of the model")
    for split in splits:
        records = _open(config, split, getattr(config.data, split))
        if records.fingerprint != identity[f"{split} data"]:
            raise UserError(f"data.{split} {records.name}: host {hosts.index} finds other data there than host 0")
        hosts.note(f"tokenizing {records.name}")
        mine = tokenize_on_all_cores(
            records,
            tokenizer,
            records=parts(range(len(records)), hosts.count)[hosts.index],
            max_length=config.max_length,
            max_prompt_length=config.prompt_limit,
            stop_ids=stops,
            date=config.chat.date,
            drop_unordered_pairs=config.drop_unordered_pairs,
        )
        if split == "train":
            mine = _with_fused(mine, config, records, tokenizer, stops, identity, hosts)
        path = output_dir / "tokens" / f"{split}.npz"
        others = [path.with_name(f"{split}-{i:05d}-of-{hosts.count:05d}.npz") for i in range(1, hosts.count)]
        if hosts.index > 0:
            tokens.save(others[hosts.index - 1], identity, mine)
        hosts.meet()
        if hosts.index == 0:
            whole = joined([mine, *(_read_part(output_dir, i, other, identity) for i, other in enumerate(others, 1))])
            check_any_kept(whole, records.name)
            tokens.save(path, identity, whole)
            for other in others:  # and no more: the other hosts may have written parts of the next split
                other.unlink()
    hosts.meet()  # not before host 0 has joined the last split


def _read_part(output_dir: epath.Path, writer: int, path: epath.Path, identity: dict[str, str]) -> Tokenized:
    part = tokens.load(path, identity)
    if part is None:
        raise not_shared(output_dir, 0, writer)
    return part


def not_shared(output_dir: epath.Path, host: int, writer: int) -> UserError:
    """The error of a host that does not find what another has written."""
    return UserError(
        f"output_dir {output_dir}: host {host} does not find what host {writer} wrote there; "
        "it must be in a place that all hosts share"
    )


def read(config: TrainConfig, identity: dict[str, str], hosts: Hosts) -> dict[str, Tokenized]:
    """The run's tokens, by split, on every host.

    Raises:
      UserError: this host does not find them, or finds others than host 0.
    """
    found, output_dir = {}, epath.Path(config.output_dir)
    for split, path in config.data:
        if path is not None:
            tokenized = tokens.load(output_dir / "tokens" / f"{split}.npz", identity)
            if tokenized is None:
                raise not_shared(output_dir, hosts.index, 0)
            hosts.same(f"{output_dir / 'tokens'}, {split}", tokenized.fingerprint)
            found[split] = tokenized
    return found


def tell(config: TrainConfig, data: Mapping[str, Tokenized], *, vocab_size: int) -> None:
    """Says what became of the examples, and writes `rejected.jsonl` and `changed.jsonl`.

    Raises:
      UserError: a token is none of the model's, which has `vocab_size`.
    """
    for split, tokenized in data.items():
        note(f"{split}: {tokenized.summary()}")
        if tokenized.fused is not None:
            note(f"{split}: {describe(tokenized.fused)}")
    used = [each for split in data.values() for each in (split.tokens, split.soft_ids) if each is not None]
    check_tokens(config.model, vocab_size, max(int(each.max()) for each in used))
    _write_rejected(epath.Path(config.output_dir) / "rejected.jsonl", data)
    _write_changed(epath.Path(config.output_dir) / "changed.jsonl", data)


def _write_rejected(path: epath.Path, data: Mapping[str, Tokenized]) -> None:
    """The examples that are not trained on, as JSON lines with their reasons."""
    lines = [
        json.dumps({"split": split, "id": each.id, "reason": each.reason, "detail": each.detail}, ensure_ascii=False)
        for split, tokenized in data.items()
        for each in tokenized.rejected
    ]
    write_text(path, "".join(line + "\n" for line in lines))


def _write_changed(path: epath.Path, data: Mapping[str, Tokenized]) -> None:
    """The examples that are trained on with a change, as JSON lines; `fusejax.data.chat.CHANGES` says what it means."""
    lines = [
        json.dumps({"split": split, "id": name, "change": change}, ensure_ascii=False)
        for split, tokenized in data.items()
        for change, names in tokenized.changes.items()
        for name in names
    ]
    write_text(path, "".join(line + "\n" for line in lines))
