"""Ten rows of every format, with what they become; and how they are written and read back."""

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl

from data_pipeline.importing import stage
from data_pipeline.importing.config import ImportConfig
from fusejax.data.records import Message, PreferenceTriple, Record, SFTExample, open_shards

N = range(10)
Row = dict[str, Any]
Pair = tuple[list[Message], list[Message], list[Message]]
Triple = tuple[list[Message], list[Message], list[Message], list[Message]]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def said(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _text(turns: list[Message]) -> str:
    return turns[0]["content"]


SYSTEM: Message = {"role": "system", "content": "be brief"}


def _sharegpt(turns: list[Message]) -> list[dict[str, str]]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]


def _dialogue(turns: list[Message]) -> str:
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in turns)


def _asked(n: int, name: str) -> list[Message]:
    return [user(f"what is {n} in {name}"), said(f"one {n}"), user("and plus 1")]


def _conversations(name: str) -> list[list[Message]]:
    return [[SYSTEM, *_asked(n, name), said(f"{n + 1}")] for n in N]


def _questions(name: str) -> list[list[Message]]:
    return [[user(f"what is {n} plus {n} in {name}?"), said(f"{2 * n}")] for n in N]


def _pairs(name: str) -> list[Pair]:
    return [([question], [answer], [said(f"about {answer['content']}")]) for question, answer in _questions(name)]


def _long_pairs(name: str) -> list[Pair]:
    return [(_asked(n, name), [said(f"{n + 1}")], [said("no"), user("why"), said(f"{n}")]) for n in N]


SFT: dict[str, tuple[list[Row], list[list[Message]]]] = {
    name: ([row(turns) for turns in made], made)
    for name, made, row in (
        ("messages", _conversations("messages"), lambda turns: {"messages": turns}),
        ("sharegpt", _conversations("sharegpt"), lambda turns: {"conversations": _sharegpt(turns)}),
        ("prompt", _questions("prompt"), lambda turns: {"prompt": _text(turns), "completion": _text(turns[1:])}),
        ("turns", _conversations("turns"), lambda turns: {"prompt": turns[:-1], "completion": turns[-1:]}),
        (
            "alpaca",
            [[user(f"add\n\n{_text(turns)}"), turns[1]] for turns in _questions("alpaca")],
            lambda turns: {"instruction": "add", "input": _text(turns)[5:], "output": _text(turns[1:])},
        ),
    )
}
"""Format -> its rows, and the messages that they become."""
DPO: dict[str, tuple[list[Row], list[Pair]]] = {
    name: ([row(*pair) for pair in made], made)
    for name, made, row in (
        ("texts", _pairs("texts"), lambda p, c, r: {"prompt": _text(p), "chosen": _text(c), "rejected": _text(r)}),
        (
            "instruction",
            _pairs("instruction"),
            lambda p, c, r: {"instruction": _text(p), "chosen": _text(c), "rejected": _text(r)},
        ),
        ("lists", _long_pairs("lists"), lambda p, c, r: {"prompt": p, "chosen": c, "rejected": r}),
        ("text and turns", _pairs("both"), lambda p, c, r: {"prompt": _text(p), "chosen": c, "rejected": r}),
        (
            "prompt repeated",
            _long_pairs("repeated"),
            lambda p, c, r: {"prompt": _text(p), "chosen": p + c, "rejected": p + r},
        ),
        ("prompt inside", _long_pairs("inside"), lambda p, c, r: {"chosen": p + c, "rejected": p + r}),
        (
            "prompt inside texts",
            _pairs("inside texts"),
            lambda p, c, r: {"chosen": f"{_text(p)} {_text(c)}", "rejected": f"{_text(p)} {_text(r)}"},
        ),
        (
            "dialogues",
            _long_pairs("dialogues"),
            lambda p, c, r: {"chosen": _dialogue(p + c), "rejected": _dialogue(p + r)},
        ),
    )
}
"""Format -> its rows, and the prompt, chosen and rejected answer that they become."""


def _triples(name: str) -> list[Triple]:
    return [
        (prompt, [said(f"surely {n}")], chosen, rejected) for n, (prompt, chosen, rejected) in enumerate(_pairs(name))
    ]


WRPO: dict[str, tuple[list[Row], list[Triple]]] = {
    name: ([row(*triple) for triple in made], made)
    for name, made, row in (
        ("public", _triples("public"), lambda p, s, t, r: {"prompt": p[0], "chosen": s + t, "rejected": r}),
        (
            "columns",
            _triples("columns"),
            lambda p, s, t, r: {"prompt": p, "source_chosen": s, "target_chosen": t, "rejected": r},
        ),
        (
            "triple of texts",
            _triples("triple of texts"),
            lambda p, s, t, r: {
                "prompt": _text(p),
                "source_chosen": _text(s),
                "target_chosen": _text(t),
                "rejected": _text(r),
            },
        ),
    )
}
"""Format -> its rows, and the prompt, the source's and the target's chosen answer and the rejected one."""


def write(path: Path, rows: list[Any]) -> Path:
    """The rows as the kind of file that the name says; in CSV, lists as JSON."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    plain = path.with_name(path.name.removesuffix(".gz"))
    if kind == "jsonl":
        plain.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif kind == "json":
        plain.write_text(json.dumps(rows), encoding="utf-8")
    elif kind == "parquet":
        pl.DataFrame(rows).write_parquet(plain)
    else:
        cells = [
            {name: json.dumps(cell) if isinstance(cell, list | dict) else cell for name, cell in row.items()}
            for row in rows
        ]
        pl.DataFrame(cells).write_csv(plain)
    if path != plain:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


def run(output: Path, *entries: dict[str, Any], **config: Any) -> dict[str, list[Record]]:
    """`KIND/SPLIT` -> its records."""
    values = {"output_dir": str(output), "data": [{**each, "path": str(each["path"])} for each in entries], **config}
    stage.run(ImportConfig.model_validate(values))
    splits = [f"{kind}/{split}" for kind in ("sft", "dpo", "wrpo") for split in ("train", "eval")]
    return {split: open_shards(output / split)[:] for split in splits if _exists(output, split)}


def _exists(output: Path, split: str) -> bool:
    kind, name = split.split("/")
    manifest = output / kind / "manifest.json"
    return manifest.exists() and name in json.loads(manifest.read_text())["splits"]


def contents(records: list[Record]) -> list[Any]:
    """What records say, in an order of its own."""
    return sorted(map(_content, records), key=str)


def _content(record: Record) -> Any:
    if isinstance(record, SFTExample):
        return record.messages
    if isinstance(record, PreferenceTriple):
        return record.prompt, record.source_chosen, record.target_chosen, record.rejected
    return record.prompt, record.chosen, record.rejected


def funnel(output: Path) -> list[dict[str, Any]]:
    return json.loads((output / "import_funnel.json").read_text())


__all__ = ["DPO", "SFT", "WRPO", "contents", "funnel", "run", "said", "user", "write"]
