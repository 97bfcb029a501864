"""Stage `import`: SFT and preference data as they are found, into shards with manifest and data card.

Every row becomes a record, or a line of `rejected/import-DATASET.jsonl` with its reason. `import_funnel.json` counts
both for each data set. What is drawn, held out and in which order it lies goes by hashes of the seed and of the
records' content: neither the order of rows nor that of files matters.
"""

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack

from etils import epath

from data_pipeline import stage_files
from data_pipeline.importing import funnel, mixing
from data_pipeline.importing.card import card
from data_pipeline.importing.config import ImportConfig
from data_pipeline.importing.funnel import Funnel
from data_pipeline.importing.rows import Found, Seen, read
from data_pipeline.prompts import reading
from data_pipeline.prompts import stage as prompts
from data_pipeline.prompts.adapters import Rejected
from data_pipeline.prompts.overlap import NearDuplicates
from data_pipeline.shards import splits
from fusejax.common.cli import UserError, note
from fusejax.common.files import check_writable, write_text
from fusejax.data.records import MANIFEST, Record

FUNNEL, CARD = "import_funnel.json", "data_card.md"


def run(config: ImportConfig) -> None:
    """Writes `{sft,dpo,wrpo}/{train,eval}-*` with a `manifest.json` each, `data_card.md`, `import_funnel.json` and the
    rejected rows.

    Raises:
      UserError: data that cannot be read, whose columns fit no format, or of which no row is kept; or `output_dir`
        holds other data.
    """
    output = epath.Path(config.output_dir)
    check_writable(output, "output_dir")
    _refuse_others(output)
    entries = (*config.data, *config.overlap.evaluation_sets)
    inputs = stage_files.fingerprint(
        config.model_dump(mode="json", exclude={"output_dir"}),
        *(file for entry in entries for file in reading.files(entry)),
    )
    manifests = [output / kind / MANIFEST for kind in splits.KINDS if (output / kind).exists()]
    stage_files.once(output, "import", inputs, [output / FUNNEL, output / CARD, *manifests], lambda: _import(config))
    for kind, task in (("sft", "sft"), ("dpo", "preference"), ("wrpo", "preference, preference: {loss: wrpo}")):
        if (output / kind / MANIFEST).exists():
            note(f"to train on it: task: {task}, data: {{train: {output / kind / 'train'}}}")


def _refuse_others(output: epath.Path) -> None:
    """Raises `UserError` where shards lie that another program wrote, since they would be replaced."""
    for kind in splits.KINDS:
        path = output / kind / MANIFEST
        if path.exists() and "imported" not in json.loads(path.read_text()):
            raise UserError(f"output_dir {output}: {output / kind} is a data set that `import` did not make")


def _import(config: ImportConfig) -> str:
    output = epath.Path(config.output_dir)
    funnels = [Funnel(*pair) for pair in zip(config.data, funnel.names(config.data), strict=True)]
    with ExitStack() as stack:
        for each in funnels:
            stack.enter_context(each.rejections(output))
        kept = _read_all(config, funnels)
        _draw_by_weight(kept, funnels)
        parts = _split(kept, funnels, config)
        manifest = {"config": config.model_dump(mode="json"), "imported": [each.as_dict() for each in funnels]}
        counts = []
        for kind in splits.KINDS:
            of_kind = {name: parts[f"{kind}/{name}"] for name in ("train", "eval")}
            counted = {name: (len(records), records) for name, records in of_kind.items()}
            counts += splits.write_splits(output, kind, counted, config.write, manifest)
    written = {funnel.rejected_file(output, each.name).name for each in funnels}
    for path in (output / "rejected").glob("import-*.jsonl"):
        if path.name not in written:  # of a data set that is no longer in the config
            path.unlink()
    write_text(output / FUNNEL, json.dumps([each.as_dict() for each in funnels], ensure_ascii=False, indent=1) + "\n")
    write_text(output / CARD, card(config, funnels, parts))
    dropped = sum((each.dropped for each in funnels), Counter[str]())
    reasons = f" {dict(dropped.most_common())}" if dropped else ""
    return f"{', '.join(counts)}; {dropped.total():,} of {sum(each.read for each in funnels):,} rows dropped{reasons}"


def _read_all(config: ImportConfig, funnels: Sequence[Funnel]) -> list[list[Found]]:
    """The records of each data set that are kept but for the weights, in their random order."""
    evaluation = prompts.evaluation_ngrams(config.overlap)
    similarity = config.overlap.near_duplicates
    near = {kind: NearDuplicates(similarity) if similarity is not None else None for kind in splits.KINDS}
    seen = Seen()
    kept: list[list[Found]] = []
    for number, each in enumerate(funnels):
        kept.append([])
        valid = read(each, f"data.{number}", seen)
        if not valid and each.dropped.keys() != {"duplicate"}:
            raise UserError(f"data.{number}: {each.entry.path}: all {each.read:,} rows are dropped, {each.why()}")
        for found in _in_order(valid, config.seed):
            try:
                if each.entry.limit is not None and len(kept[-1]) >= each.entry.limit:
                    raise Rejected("over_limit", found.record.id)
                if match := evaluation.find(found.asked):
                    raise Rejected(f"contaminated: {match[0]}", f"{found.record.id}: {match[1]}")
                index = near[each.kind]
                if index and (other := index.add(found.record.id, found.text)):
                    raise Rejected("near_duplicate", f"{found.record.id}: of {other}")
            except Rejected as error:
                each.drop(found.where, error)
            else:
                kept[-1].append(found)
    if not any(kept):
        raise UserError(f"data: no record is left: {funnels[0].entry.path}: {funnels[0].why()}")
    return kept


def _in_order(found: Sequence[Found], seed: int) -> list[Found]:
    return sorted(found, key=lambda each: (stage_files.stable_hash(seed, "import", each.content), each.content))


def _draw_by_weight(kept: Sequence[list[Found]], funnels: Sequence[Funnel]) -> None:
    """Drops what is more than the weights allow, of each kind; the records are in a random order already."""
    for kind in splits.KINDS:
        mixed = [
            (found, each)
            for found, each in zip(kept, funnels, strict=True)
            if each.entry.weight is not None and each.kind == kind
        ]
        weights = [each.entry.weight or 0.0 for _, each in mixed]
        sizes = mixing.sizes([len(found) for found, _ in mixed], weights) if mixed else []
        for (found, each), size in zip(mixed, sizes, strict=True):
            for surplus in found[size:]:
                each.drop(surplus.where, Rejected("over_weight", surplus.record.id))
            del found[size:]


def _split(kept: Sequence[list[Found]], funnels: Sequence[Funnel], config: ImportConfig) -> dict[str, Sequence[Record]]:
    """`KIND/SPLIT` -> its records, in a random order that mixes the data sets. No prompt is in both splits."""
    held_out = {found.prompt for part, each in zip(kept, funnels, strict=True) if each.entry.eval for found in part}
    of_domain: dict[str, set[str]] = defaultdict(set)
    for found in itertools.chain(*kept):
        if found.prompt not in held_out:
            of_domain[found.record.domain].add(found.prompt)
    # The only prompt of a domain is better trained on than not.
    several = {domain: prompts for domain, prompts in of_domain.items() if len(prompts) > 1}
    held_out |= splits.held_out(several, config.write.eval_fraction, config.seed)
    parts: dict[str, Sequence[Record]] = {}
    for kind, split in itertools.product(splits.KINDS, ("train", "eval")):
        wanted = [
            found
            for part, each in zip(kept, funnels, strict=True)
            if each.kind == kind
            for found in part
            if (found.prompt in held_out) == (split == "eval")
        ]
        parts[f"{kind}/{split}"] = [each.record for each in _in_order(wanted, config.seed)]
        if split == "eval" and wanted and not parts[f"{kind}/train"]:
            raise UserError(f"output_dir {config.output_dir}: all {len(wanted)} records of {kind} are held out")
    return parts
