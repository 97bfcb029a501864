"""Choices that must stay what they are, pinned as the values that the code of November 2026 gave.

A run takes up its answers by their keys, and each answer, prompt and pair is drawn by a hash. Whoever changes one of
these formulas asks millions of paid answers again, or makes another data set of the same seed: then a test here fails,
and the values are not to be renewed without a way for the answers that users keep already.
"""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from etils import epath

from data_pipeline import stage_files
from data_pipeline.config import PipelineConfig
from data_pipeline.prompts import stage as prompts
from data_pipeline.sampling import answer_keys
from data_pipeline.sampling.chat import ChatTokenizer
from data_pipeline.selection import hashing
from data_pipeline.selection import stage as select
from data_pipeline.selection.rules import TRIPLE
from data_pipeline.shards.stage import eval_prompts
from tests.data_pipeline.helpers import write_jsonl

ASKED_AGAIN = "answers already kept would all be asked again"
OTHER_DATA = "the same seed would make another data set"


def config_in(folder: Path, **changes: Any) -> PipelineConfig:
    reward = {"reward": "builtins:len"}
    values = {
        "output_dir": str(folder),
        "seed": 7,
        "prompts": [
            {"path": str(folder / f"{domain}.jsonl"), "dataset": f"{domain}-set", "domain": domain}
            for domain in ("instruction", "math", "code", "chinese")
        ],
        "sources": [
            {"name": "a", "model": "org/a", "temperature": 0.8, "top_p": 0.95},
            {"name": "b", "model": "org/b", "temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.05},
        ],
        "samples_per_prompt": {"instruction": 2, "code": 1},
        "max_new_tokens": 64,
        "scorers": {"instruction": reward, "math": reward, "code": reward},
    }
    return PipelineConfig.model_validate(values | changes)


class Tokenizer(ChatTokenizer):
    """Code points as tokens, in a context that the longer prompt nearly fills."""

    def __init__(self):
        self.context = 40

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        return [ord(letter) for letter in messages[-1]["content"]]


def asked(folder: Path, source: int = 0, engine: dict[str, Any] | None = None) -> answer_keys.SamplePlan:
    config = config_in(folder)
    entry = config.sources[source]
    if engine is not None:
        entry = entry.model_copy(update={"engine": engine})
    table = pl.DataFrame(
        {
            "id": ["p0", "p1"],
            "domain": ["instruction", "code"],
            "messages": [[{"role": "user", "content": text}] for text in ("What is 3 + 4?", "你好, write add")],
        }
    )
    # The revision of a snapshot of the Hub is its folder's name: no checkpoint needs to be there.
    common = answer_keys.sampling_parameters(config, entry, Path("snapshots") / "0123abc")
    return answer_keys.plan_samples(config, entry, table, Tokenizer(), common)


def test_keys_and_seeds_of_answers(tmp_path: Path):
    wanted = asked(tmp_path)
    assert [
        (*row, wanted.requests[row[0]].seed, wanted.requests[row[0]].max_tokens) for row in wanted.rows if row[0]
    ] == [
        ("90bcbaf2829a952472a3c9d90dac9c02a6827737bc30869b32340a086fedece2", "p0", 0, 3349965256199039969, 26),
        ("d02c10028e0e48d7a2f6d9e933325d19f7811824e2d3a1ed4a498e62abc8a328", "p0", 1, 933931983329801379, 26),
        ("ee6015328850ef4f4f06fa8a1d5e53903d94b154fc7c531f5872f820827fb5e5", "p1", 0, 1186429231212365218, 27),
    ], ASKED_AGAIN
    assert [row[0] for row in asked(tmp_path, 1).rows] == [
        "3fde61669abdd55312606772d19fa0ddd3bfcdcbe7992ee9ff888aafa20d4623",
        "7872a602f3752d99c50a38dc901004e4c19fcaa5fedc5b5ee4603ea769acbbe3",
        "64ed8289bc0b5fd52ac10d04802be9069ad9b345ca73616424e9ca4896c12428",
    ], ASKED_AGAIN
    assert [row[0] for row in asked(tmp_path, 0, {"quantization": "fp8", "tensor_parallel_size": 8}).rows] == [
        "a08645fe64f8dad295eb7fad0aa5813be4e724ecc1f49b003f3060eaabbe27b0",
        "f43812afdb2051f5be679133048fc4cab14baaf8d20998c24d7b6618ebbbfc4f",
        "f302774e348e1b2538c522c16333e295300b60c85539edd7d8063caacd0eb229",
    ], ASKED_AGAIN


def test_hashes():
    assert (
        stage_files.fingerprint({"b": 1, "a": [0.5, None]}, "é")
        == "53402e15fbd4397750197390e379d2ad0ee8999134afe0191ec1a0bd7b58c6d9"
    ), ASKED_AGAIN
    assert (stage_files.stable_hash(7, "x"), stage_files.stable_hash(7, "sample", "a", "é", "0")) == (
        46897268665467222,
        5207707230940535220,
    ), ASKED_AGAIN
    keys = hashing.keys(7, pl.Series("id", ["p0", "p1", "好"]))
    assert keys.to_list() == [4346359983513554463, 3426195031908946440, 7930995006370203650], OTHER_DATA
    mixed = hashing.mix(keys, pl.Series([0, 1, 2]))
    assert mixed.to_list() == [5845784073086743414, 2157249648064284543, 17638720162283755760], OTHER_DATA
    assert hashing.share(mixed).to_list() == [0.31690058959609035, 0.11694473775124425, 0.9561969359905959], OTHER_DATA


def test_order_of_prompts_and_what_is_held_out(tmp_path: Path):
    for domain in ("instruction", "chinese"):
        write_jsonl(tmp_path / f"{domain}.jsonl", [{"id": f"{domain[0]}{n}", "prompt": f"say {n}"} for n in range(6)])
    entries = [
        {"path": str(tmp_path / f"{d}.jsonl"), "dataset": d, "domain": d, "limit": 4}
        for d in ("instruction", "chinese")
    ]
    config = config_in(tmp_path, prompts=entries, write={"eval_fraction": 0.5})
    prompts.run(config)
    table = pl.read_parquet(tmp_path / "prompts.parquet")
    assert table["id"].to_list() == ["c5", "i2", "i0", "c1", "c2", "i3", "i5", "c3"], OTHER_DATA
    held_out = eval_prompts(table.select("domain", prompt_id="id"), config)
    assert sorted(held_out) == ["c2", "c5", "i0", "i3"], OTHER_DATA


# (source, reward, verdict) of each answer, the same to every prompt: rewards tie within a source and between sources.
ANSWERS = [
    ("a", 0.14, "correct"), ("a", 0.14, "correct"), ("a", 0.11, "wrong"), ("a", 0.11, "wrong"), ("a", 0.125, None),
    ("b", 0.14, "correct"), ("b", 0.125, "correct"), ("b", 0.11, "wrong"), ("b", 0.11, "wrong"), ("b", 0.02, "wrong"),
]  # fmt: skip
# Answers of some prompts that are otherwise: prompt -> index in ANSWERS -> columns.
CHANGES: dict[str, dict[int, dict[str, Any]]] = {
    **{f"m{number}": {9: {"reward": 0.11}} for number in range(4)},  # The sources' pairs tie in reward and margin.
    "m4": {index: {"verdict": "correct"} for index in range(10)},
    "m5": {index: {"verdict": "wrong"} for index in range(10)},
    "i5": {index: {"reward": 0.1} for index in range(10)},
    "c4": {index: {"finish_reason": "length"} for index in range(5)},
    "c5": {0: {"reward": None}, 1: {"text": " "}, 5: {"finish_reason": "error"}, 6: {"reward": float("nan")}},
}


def write_tables(folder: Path) -> None:
    domains = {"i": "instruction", "m": "math", "c": "code", "z": "chinese"}
    names = [f"{letter}{number}" for letter in domains for number in range(6)]
    table = pl.DataFrame(
        {
            "id": names,
            "dataset": [f"{domains[name[0]]}-set" for name in names],
            "domain": [domains[name[0]] for name in names],
            "messages": [[{"role": "user", "content": name}] for name in names],
            "answer": None,
            "tests": None,
        },
        schema=prompts.SCHEMA,
    )
    stage_files.write_parquet(table, epath.Path(folder / "prompts.parquet"))
    rows = [
        {
            "prompt_id": name,
            "source": source,
            "sample_index": index % 5,
            "text": f"{source} {index}",
            "finish_reason": "stop",
            "reward": reward,
            "verdict": verdict,
        }
        | CHANGES.get(name, {}).get(index, {})
        for name in names
        for index, (source, reward, verdict) in enumerate(ANSWERS)
    ]
    scores = pl.DataFrame(rows, schema_overrides={"reward": pl.Float64, "verdict": pl.String})
    for source in ("a", "b"):
        path = epath.Path(folder / "scores" / f"{source}.parquet")
        stage_files.write_parquet(scores.filter(source=source), path)


SELECTIONS = {
    7: {
        "sft": ("c0:b0 c1:a0 c2:b0 c3:a0 c4:b0 i2:a0 i3:a0 m4:a1 z0:a1 z1:a0 z2:a1 z3:a1 z4:a1 z5:a0"),
        "dpo": (
            "c0:b0>b4 c1:b0>b4 c2:b0>b4 c3:b0>b4 c4:b0>b4 i0:a0>a3 i1:a0>a2 i4:a0>a3 m0:b0>b2 m1:a0>a2 "
            "m2:b0>b2 m3:a0>a3"
        ),
        "discarded": ("c5:select:correct_without_reward i5:select:margin_too_small m5:select:no_correct_answer"),
        "unused": (
            "c4:a:0:truncated c4:a:1:truncated c4:a:2:truncated c4:a:3:truncated c4:a:4:truncated "
            "c5:a:0:no_reward c5:a:1:empty c5:b:0:not_sampled c5:b:1:non_finite_reward"
        ),
    },
    8: {
        "sft": ("c0:b0 c1:b0 c2:a0 c3:b0 c4:b0 i3:a1 m4:a0 z0:a0 z1:a0 z2:a0 z3:a1 z4:a0 z5:a1"),
        "dpo": (
            "c0:b0>b4 c1:b0>b4 c2:b0>b4 c3:b0>b4 c4:b0>b4 i0:a0>a2 i1:a0>a3 i2:a0>a3 i4:a1>a3 m0:a1>a3 "
            "m1:b0>b2 m2:b0>b2 m3:a1>a3"
        ),
        "discarded": ("c5:select:correct_without_reward i5:select:margin_too_small m5:select:no_correct_answer"),
        "unused": (
            "c4:a:0:truncated c4:a:1:truncated c4:a:2:truncated c4:a:3:truncated c4:a:4:truncated "
            "c5:a:0:no_reward c5:a:1:empty c5:b:0:not_sampled c5:b:1:non_finite_reward"
        ),
    },
}
"""Seed -> table -> its rows: `prompt:source and index`, of a pair `prompt:chosen>rejected`, or with the reason."""


@pytest.mark.parametrize("seed", [7, 8])
def test_a_whole_selection(tmp_path: Path, seed: int):
    write_tables(tmp_path)
    select.run(config_in(tmp_path, seed=seed, selection={"chinese": {"source": "a"}}))
    assert {name: lines(tmp_path, name) for name in SELECTIONS[seed]} == SELECTIONS[seed], OTHER_DATA


TARGETED = {
    "sft": "c2:a1 c2:b0 c4:b0 c4:b1 c5:a2 c5:a4 i2:a0 m0:a0 m1:a0",
    "dpo": (
        "c0:a0>a2 c0:b0>b4 c1:a0>a2 c1:b0>b4 c3:a0>a3 c3:b0>b4 z0:a1>a2 z0:b0>b4 z1:a0>a2 z1:b0>b4 z2:a1>a3 z2:b0>b4 "
        "z3:a1>a2 z3:b0>b4 z4:a1>a2 z4:b0>b4 z5:a0>a2 z5:b0>b4"
    ),
    "wrpo": ("i0:a0>b0>b4 i1:a0>b0>b4 i3:a0>b0>b4 i4:a0>b0>b4 m2:a1>b0>b2 m3:a0>b0>b2 m4:a1>b0>b4 m5:a0>b0>b4"),
    "discarded": "i5:select:margin_too_small",
}
"""As above, for triples of two domains' prompts with `b` as the target, and weighted records of the other two's."""


def test_a_selection_for_a_target(tmp_path: Path):
    write_tables(tmp_path)
    rules = {"instruction": {"name": "wrpo", "target": "b"}, "math": {"name": "wrpo", "target": "b"}}
    rules |= {name: {"name": "fuserl", "top": 2} for name in ("code", "chinese")}
    domains = {name: {"reward": "builtins:len", "rule": rule} for name, rule in rules.items()}
    # A target may not answer other domains as a source; these tables are as if another model of its name had.
    sources = [{"name": "a", "model": "org/a"}, {"name": "b", "model": "org/b", "domains": ["instruction", "math"]}]
    changes = {"domains": domains, "samples_per_prompt": None, "scorers": {}, "sources": sources}
    select.run(config_in(tmp_path, **changes))
    assert {name: lines(tmp_path, name) for name in TARGETED} == TARGETED, OTHER_DATA


def lines(folder: Path, name: str) -> str:
    """A table of the selection, a word a row."""
    table = pl.read_parquet(folder / "selection" / f"{name}.parquet")
    match name:
        case "sft":
            words = [f"{row['prompt_id']}:{row['source']}{row['sample_index']}" for row in table.iter_rows(named=True)]
        case "dpo":
            words = [
                f"{row['prompt_id']}:{row['chosen_source']}{row['chosen_sample_index']}"
                f">{row['rejected_source']}{row['rejected_sample_index']}"
                for row in table.iter_rows(named=True)
            ]
        case "wrpo":
            words = [
                f"{row['prompt_id']}:"
                + ">".join(f"{row[f'{side}_source']}{row[f'{side}_sample_index']}" for side in TRIPLE)
                for row in table.iter_rows(named=True)
            ]
        case "discarded":
            words = [":".join(row) for row in table.select("prompt_id", "stage", "reason").iter_rows()]
        case _:
            words = [
                ":".join(map(str, row)) for row in table.select("prompt_id", "source", "sample_index", "reason").rows()
            ]
    return " ".join(words)
