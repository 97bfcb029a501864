"""From files to shards: every format in every kind of file, mixtures, splits, copies, and what a run leaves behind."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.importing.config import ImportConfig
from data_pipeline.importing.known import KNOWN
from fusejax.common.cli import UserError
from fusejax.data.records import PreferencePair, PreferenceTriple, SFTExample
from tests.data_pipeline.importing.fixtures import DPO, SFT, WRPO, contents, funnel, run, said, user, write

NO_EVAL = {"write": {"eval_fraction": 0}}
FILES = ["jsonl", "json", "csv", "parquet", "jsonl.gz", "json.gz", "csv.gz", "parquet.gz"]


@pytest.mark.parametrize(("name", "ending"), itertools.product([*SFT, *DPO, *WRPO], FILES))
def test_every_format_in_every_kind_of_file(tmp_path: Path, name: str, ending: str):
    ((kind, (rows, expected)),) = (
        (kind, made[name]) for kind, made in (("sft", SFT), ("dpo", DPO), ("wrpo", WRPO)) if name in made
    )
    path = write(tmp_path / f"mine.{ending}", rows)
    found = run(tmp_path / "out", {"path": path}, **NO_EVAL)
    assert found.keys() == {f"{kind}/train"}
    records = found[f"{kind}/train"]
    assert contents(records) == sorted(expected, key=str)
    assert {(r.dataset, r.domain, r.source_model) for r in records} == {("mine", "chat", "unknown")}
    assert len({record.id for record in records}) == 10
    (counts,) = funnel(tmp_path / "out")
    assert (counts["read"], counts["dropped"], counts["kept"]) == (10, {}, 10)


def test_a_folder(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    rows, expected = SFT["messages"]
    write(tmp_path / "mine/train-0.parquet", rows[:4])
    write(tmp_path / "mine/train-1.parquet", rows[4:])
    write(tmp_path / "mine/test.parquet", rows[:3])
    found = run(tmp_path / "out", {"path": tmp_path / "mine"}, **NO_EVAL)
    assert contents(found["sft/train"]) == sorted(expected, key=str)
    assert {record.dataset for record in found["sft/train"]} == {"mine"}
    assert len(run(tmp_path / "test", {"path": tmp_path / "mine", "split": "test"}, **NO_EVAL)["sft/train"]) == 3


def rows_of(name: str) -> tuple[list[dict[str, Any]], list[Any]]:
    """Rows as the known data set has them, and what they become."""
    pairs, short = DPO["lists"][1], DPO["texts"][1]
    if name.endswith("SFT-Data"):
        rows = [{"dataset": "d", "source_model": "m", **row} for row in SFT["sharegpt"][0]]
        return rows, SFT["sharegpt"][1]
    if name.endswith("DPO-Data"):
        return [{"dataset": "d", "source_model": "m", **row} for row in DPO["lists"][0]], pairs
    if "binarized" in name:
        rows = [
            {"prompt": p[0]["content"], "prompt_id": f"{n}", "chosen": p + c, "rejected": p + r, "messages": p + c,
             "score_chosen": 8.5, "score_rejected": 3.0} for n, (p, c, r) in enumerate(short)
        ]  # fmt: skip
        return rows, short
    if "wrpo" in name:
        rows, triples = WRPO["public"]
        return [{"prompt_id": f"{n}", **row} for n, row in enumerate(rows)], triples
    rows = [
        {"id": f"{n}", "source": "d", "prompt": "not what is asked", "chosen": p + c, "rejected": p + r}
        for n, (p, c, r) in enumerate(pairs)
    ]
    return rows, pairs


@pytest.mark.parametrize("name", KNOWN)
def test_known_data_sets_need_no_columns(tmp_path: Path, name: str):
    rows, expected = rows_of(name)
    path = write(tmp_path / "copy.jsonl", rows)
    found = run(tmp_path / "out", {"path": path, "adapter": name}, **NO_EVAL)
    (records,) = found.values()
    assert contents(records) == sorted(expected, key=str)
    (counts,) = funnel(tmp_path / "out")
    assert counts["format"] and counts["dropped"] == {} and counts["kept"] == len(expected)
    dataset = name if "ultrafeedback" in name else "d"
    assert {record.dataset for record in records} == {dataset}
    assert {record.source_model for record in records} == {"m" if "FuseChat" in name else "unknown"}


def test_what_the_splits_of_ultrafeedback_are_for(tmp_path: Path):
    name = "HuggingFaceH4/ultrafeedback_binarized"
    rows, expected = rows_of(name)
    path = write(tmp_path / "copy.jsonl", rows)
    found = run(tmp_path / "pairs", {"path": path, "adapter": name}, **NO_EVAL)["dpo/train"]
    assert {(record.chosen_score, record.rejected_score) for record in found} == {(8.5, 3.0)}
    assert {record.id for record in found} == {f"{n}" for n in range(10)}
    found = run(tmp_path / "sft", {"path": path, "adapter": name, "split": "test_sft"}, **NO_EVAL)["sft/train"]
    assert contents(found) == sorted((p + c for p, c, _ in expected), key=str)
    entry = {"output_dir": "x", "data": [{"path": name}]}
    assert ImportConfig.model_validate(entry).data[0].split == "train_prefs"


def test_triples_of_a_known_data_set_as_pairs(tmp_path: Path):
    """Those of the published baseline: each chosen answer with the rejected one."""
    name = "AALF/ultrafeedback_wrpo"
    rows, triples = rows_of(name)
    path = write(tmp_path / "copy.jsonl", rows)
    found = run(tmp_path / "out", {"path": path, "adapter": name, "kind": "dpo"}, **NO_EVAL)["dpo/train"]
    expected = [(prompt, chosen, rejected) for prompt, *both, rejected in triples for chosen in both]
    assert contents(found) == sorted(expected, key=str)
    assert {record.id for record in found} == {f"{n}-{of}" for n in range(10) for of in ("source", "target")}
    found = run(tmp_path / "triples", {"path": path, "adapter": name}, **NO_EVAL)["wrpo/train"]
    assert {record.id for record in found} == {f"{n}" for n in range(10)}


def test_triples_found_by_their_rows(tmp_path: Path, capsys: pytest.CaptureFixture):
    rows, expected = WRPO["public"]
    rows = [*rows, {"prompt": "a", "chosen": [said("b")], "rejected": [said("c")]}]
    path = write(tmp_path / "mixed.jsonl", rows)
    # A pair among them does not make pairs of them all.
    found = run(tmp_path / "out", {"path": path}, **NO_EVAL)
    assert contents(found["wrpo/train"]) == sorted(expected, key=str)
    assert funnel(tmp_path / "out")[0]["dropped"] == {"not_two_answers": 1}
    said_of = capsys.readouterr().err
    assert "triples, triple, two answers in chosen (prompt, chosen, rejected)" in said_of
    assert "task: preference, preference: {loss: wrpo}, data: {train: " in said_of


def test_triples_in_a_file_of_ones_own(tmp_path: Path):
    """Found whatever other columns are named; as pairs, if that is asked for."""
    rows, triples = WRPO["public"]
    path = write(tmp_path / "x.jsonl", [{**row, "name": f"n{n}"} for n, row in enumerate(rows)])
    entry = {"path": path, "columns": {"id": "name"}}
    found = run(tmp_path / "triples", entry, **NO_EVAL)
    assert contents(found["wrpo/train"]) == sorted(triples, key=str)
    found = run(tmp_path / "pairs", {**entry, "kind": "dpo"}, **NO_EVAL)["dpo/train"]
    expected = [(prompt, chosen, rejected) for prompt, *both, rejected in triples for chosen in both]
    assert contents(found) == sorted(expected, key=str)
    assert {record.id for record in found} == {f"n{n}-{of}" for n in range(10) for of in ("source", "target")}


@pytest.mark.parametrize("kind", ["sft", "dpo", "wrpo"])
def test_what_shards_hold_comes_back_from_rows(tmp_path: Path, kind: str):
    """Every field of every kind that can be trained on, by its own name."""
    names = {"dataset": "d", "domain": "law", "source_model": "m"}
    turns = {"prompt": [user("a")], "rejected": [said("z")], "rejected_score": 0.25}
    records: list[Any] = {
        "sft": [SFTExample("1", messages=[user("a"), said("b")], weight=0.5, **names)],
        "dpo": [PreferencePair("1", chosen=[said("b")], chosen_score=0.5, weight=0.125, **turns, **names)],
        "wrpo": [
            PreferenceTriple(
                "1", source_chosen=[said("s")], target_chosen=[said("t")], source_score=2.0, target_score=1.0,
                **turns, **names,
            )
        ],
    }[kind]  # fmt: skip
    path = write(tmp_path / "rows.jsonl", [dataclasses.asdict(record) for record in records])
    assert run(tmp_path / "out", {"path": path}, **NO_EVAL) == {f"{kind}/train": records}


def test_weights(tmp_path: Path):
    weights = [None, 2, "0.5", 0, -1.0, math.inf, "much", True, 1e-50, 1e39]  # The last two are 0 and inf in float32.
    rows = [{"prompt": f"{n}", "completion": "b", "weight": weight} for n, weight in enumerate(weights)]
    path = write(tmp_path / "rows.jsonl", rows)
    found = run(tmp_path / "out", {"path": path}, **NO_EVAL)["sft/train"]
    assert {record.messages[0]["content"]: record.weight for record in found} == {"0": None, "1": 2.0, "2": 0.5}
    assert funnel(tmp_path / "out")[0]["dropped"] == {"bad_weight": 7}
    rows = [{"prompt": "a", "completion": "b", "w": 3}]
    found = run(tmp_path / "named", {"path": write(tmp_path / "w.csv", rows), "columns": {"weight": "w"}}, **NO_EVAL)
    assert found["sft/train"][0].weight == 3


def test_a_hub_data_set_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Without a network: what was downloaded once is read from the cache of `datasets`."""
    import datasets

    rows, expected = rows_of("FuseAI/FuseChat-3.0-SFT-Data")
    folder = tmp_path / "FuseChat-3.0-SFT-Data"
    folder.mkdir()
    write(folder / "train.json", rows)
    builder = datasets.load_dataset_builder(str(folder), cache_dir=str(tmp_path / "elsewhere"))
    name = f"FuseAI___{builder.dataset_name}"
    builder.download_and_prepare(str(tmp_path / "cache" / name / builder.config.name / "0.0.0" / ("0" * 40)))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    found = run(tmp_path / "out", {"path": "FuseAI/FuseChat-3.0-SFT-Data"}, **NO_EVAL)
    assert contents(found["sft/train"]) == sorted(expected, key=str)
    assert {(record.dataset, record.source_model) for record in found["sft/train"]} == {("d", "m")}
    assert (
        "FuseAI/FuseChat-3.0-SFT-Data: SFT, messages (conversations, dataset, source_model)" in capsys.readouterr().err
    )


def test_names_and_ids(tmp_path: Path):
    """What the config says comes first, then what the row says; an id that is there twice gets an end of its own."""
    rows = [
        {"prompt": "a", "completion": "1", "id": 7, "source_model": "m", "domain": "math"},
        {"prompt": "b", "completion": "2", "id": 7, "source_model": None, "domain": " "},
        {"prompt": "c", "completion": "3"},
    ]
    path = write(tmp_path / "x.y.jsonl", rows)
    found = run(tmp_path / "out", {"path": path}, **NO_EVAL)["sft/train"]
    assert {(r.messages[0]["content"], r.dataset, r.domain, r.source_model) for r in found} == {
        ("a", "x.y", "math", "m"), ("b", "x.y", "chat", "unknown"), ("c", "x.y", "chat", "unknown"),
    }  # fmt: skip
    ids = sorted(record.id for record in found)
    assert ids[0] == "7" and ids[1].startswith("7-") and ids[2].startswith("x.y-")
    entry = {"path": path, "dataset": "D", "domain": "E", "source_model": "F"}
    found = run(tmp_path / "named", entry, **NO_EVAL)["sft/train"]
    assert {(r.dataset, r.domain, r.source_model) for r in found} == {("D", "E", "F")}


def test_columns_that_are_named(tmp_path: Path):
    rows = [{"question": f"q{n}", "answer": f"a{n}", "prompt": "no", "who": "me", "sys": "be brief"} for n in range(10)]
    columns = {"prompt": "question", "completion": "answer", "source_model": "who", "system": "sys"}
    found = run(tmp_path / "out", {"path": write(tmp_path / "x.jsonl", rows), "columns": columns}, **NO_EVAL)
    assert {record.source_model for record in found["sft/train"]} == {"me"}
    system = {"role": "system", "content": "be brief"}
    assert contents(found["sft/train"]) == [[system, user(f"q{n}"), said(f"a{n}")] for n in range(10)]


def test_every_dropped_row_has_its_reason(tmp_path: Path):
    fine = [user("x"), said("y")]
    rows: list[Any] = [
        {"messages": fine},
        {"messages": fine},
        {"messages": [*fine, user("more?")]},
        {"messages": [user("cut"), said("y"), user(" ")]},
        {"messages": [user("x"), said(" ")]},
        {"messages": [user("x")]},
        {"messages": [said("x"), user("y"), said("z")]},
        {"messages": [{"role": "tool", "content": "x"}, said("y")]},
        {"messages": [user("half \ud800"), said("y")]},
        {"messages": [user("x"), {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
        {"messages": [user("x"), {"role": "assistant", "content": "y", "weight": 0}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, said("y")]},
        {"messages": "x"},
        {"text": "x"},
        [1],
    ]
    path = write(tmp_path / "chats.jsonl", [])
    path.write_text("\n".join([*map(json.dumps, rows), "{broken"]))
    found = run(tmp_path / "out", {"path": path}, **NO_EVAL)
    assert contents(found["sft/train"]) == [[user("cut"), said("y")], fine]
    lines = [json.loads(line) for line in (tmp_path / "out/rejected/import-chats.jsonl").read_text().splitlines()]
    assert [(int(line["where"].rpartition(":")[2]), line["reason"]) for line in lines] == [
        (2, "duplicate"), (3, "duplicate"), (5, "empty_turn"), (6, "no_assistant_turn"), (7, "turn_order"),
        (8, "unknown_role"), (9, "bad_unicode"), (10, "tool_use"), (11, "not_for_training"), (12, "not_text"),
        (13, "no_turns"), (14, "no_turns"), (15, "not_an_object"), (16, "bad_json"),
    ]  # fmt: skip
    assert lines[5]["record"] == rows[7] and lines[5]["detail"] == "tool"
    (counts,) = funnel(tmp_path / "out")
    assert counts["read"] == 16 and counts["kept"] == 2 and counts["cut"] == 1 and sum(counts["dropped"].values()) == 14
    card = (tmp_path / "out/data_card.md").read_text()
    assert "| chats | unknown_role | a role that is neither system, user nor assistant | 1 |" in card
    assert "| sft | chats | chat | unknown | 2 | 0 |" in card


def questions(count: int, name: str = "q") -> list[dict[str, Any]]:
    return [{"id": f"{name}{n}", "prompt": f"{name} {n}", "completion": f"{n}"} for n in range(count)]


def test_weights_and_limits(tmp_path: Path):
    a, b, c = (
        write(tmp_path / f"{name}.jsonl", questions(count, name)) for name, count in (("a", 90), ("b", 90), ("c", 30))
    )
    entries = [{"path": a, "weight": 3}, {"path": b, "weight": 1.5, "limit": 50}, {"path": c, "weight": 1}]
    found = run(tmp_path / "out", *entries, **NO_EVAL)["sft/train"]
    count = {name: sum(record.dataset == name for record in found) for name in "abc"}
    assert count == {"a": 90, "b": 45, "c": 30}
    dropped = [entry["dropped"] for entry in funnel(tmp_path / "out")]
    assert dropped == [{}, {"over_limit": 40, "over_weight": 5}, {}]
    assert [record.dataset for record in found] != sorted(record.dataset for record in found), "mixed"


def test_choices_are_seeded_and_know_no_order(tmp_path: Path):
    rows = questions(60)
    paths = [write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", rows[::-1])]
    entry = {"limit": 20, "dataset": "d"}
    one, other = (run(tmp_path / path.stem, {"path": path, **entry}, write={"eval_fraction": 0.2}) for path in paths)
    assert one == other and len(one["sft/eval"]) == 4 and len(one["sft/train"]) == 16
    changed = run(tmp_path / "c", {"path": paths[0], **entry}, write={"eval_fraction": 0.2}, seed=1)
    assert {r.id for r in changed["sft/train"]} != {r.id for r in one["sft/train"]}


def test_a_prompt_is_in_one_split_only(tmp_path: Path):
    sft = [{"prompt": f"q{n % 10}", "completion": f"a{n}"} for n in range(40)]
    pairs = [{"prompt": f"q{n % 10}", "chosen": f"a{n}", "rejected": "no"} for n in range(40)]
    held = [{"prompt": "q3", "completion": "an answer to evaluate on"}]
    entries = [
        {"path": write(tmp_path / "sft.jsonl", sft)},
        {"path": write(tmp_path / "pairs.jsonl", pairs)},
        {"path": write(tmp_path / "held.jsonl", held), "eval": True},
    ]
    found = run(tmp_path / "out", *entries, write={"eval_fraction": 0.1})
    asked = {
        split: {(r.messages if isinstance(r, SFTExample) else r.prompt)[0]["content"] for r in records}
        for split, records in found.items()
    }
    assert asked["sft/eval"] == asked["dpo/eval"] and "q3" in asked["sft/eval"] and len(asked["sft/eval"]) == 2
    assert asked["sft/train"] == asked["dpo/train"] and not asked["sft/train"] & asked["sft/eval"]
    assert "an answer to evaluate on" in {r.messages[1]["content"] for r in found["sft/eval"]}


def test_one_prompt_is_trained_on(tmp_path: Path):
    found = run(tmp_path / "out", {"path": write(tmp_path / "x.jsonl", questions(1))})
    assert found.keys() == {"sft/train"}


def test_near_copies_and_evaluation_sets(tmp_path: Path):
    river = "the river flows past the old mill and under the stone bridge to the wide grey sea beyond the hills"
    rows = [
        {"prompt": "Describe it.", "completion": f"{river}."},
        {"prompt": "Describe it.", "completion": f"{river}!"},
        {
            "prompt": "Describe it.",
            "completion": "It is a quiet place where herons stand in the shallows all day long.",
        },
        {"prompt": "What is 7 + 5?", "completion": "12"},
    ]
    overlap = {
        "near_duplicates": 0.7,
        "evaluation_sets": [
            {
                "name": "MT",
                "path": str(write(tmp_path / "eval.csv", [{"turns": "What is 7 + 5?"}])),
                "columns": ["turns"],
            }
        ],
    }
    found = run(tmp_path / "out", {"path": write(tmp_path / "x.jsonl", rows)}, overlap=overlap, **NO_EVAL)
    assert len(found["sft/train"]) == 2, "another answer to the same prompt is no copy"
    assert funnel(tmp_path / "out")[0]["dropped"] == {"near_duplicate": 1, "contaminated: MT": 1}


def test_it_is_done_again_only_if_something_changed(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = write(tmp_path / "x.jsonl", questions(20))
    before = run(tmp_path / "out", {"path": path})
    manifest = (tmp_path / "out/sft/manifest.json").read_bytes()
    capsys.readouterr()
    assert run(tmp_path / "out", {"path": path}) == before
    assert "import: up to date: sft/train 19, sft/eval 1" in capsys.readouterr().out
    (tmp_path / "out/sft/manifest.json").unlink()
    run(tmp_path / "out", {"path": path})
    assert (tmp_path / "out/sft/manifest.json").read_bytes() == manifest
    rows, _ = DPO["texts"]
    found = run(tmp_path / "out", {"path": write(tmp_path / "y.jsonl", rows)})
    assert found.keys() == {"dpo/train", "dpo/eval"} and not (tmp_path / "out/sft").exists()
    assert [path.name for path in (tmp_path / "out/rejected").iterdir()] == ["import-y.jsonl"]


def test_nothing_is_written_over_and_nothing_by_halves(tmp_path: Path):
    path = write(tmp_path / "x.jsonl", questions(20))
    bad = write(tmp_path / "bad.jsonl", [{"prompt": "x", "completion": " "}])
    with pytest.raises(
        UserError, match=r"data.1: .*bad.jsonl: all 1 rows are dropped, 1 for empty_turn \(a turn is"
    ) as error:
        run(tmp_path / "out", {"path": path}, {"path": bad})
    assert "\n" not in str(error.value) and "bad.jsonl:1: turn 1, assistant" in str(error.value)
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    (tmp_path / "out/sft").mkdir(parents=True)
    (tmp_path / "out/sft/manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"output_dir .*out: .*sft is a data set that `import` did not make"):
        run(tmp_path / "out", {"path": path})


def test_what_is_no_json(tmp_path: Path):
    (tmp_path / "x.jsonl").write_text('{\n "prompt": "a",\n "completion": "b"\n}\n')
    with pytest.raises(UserError, match=r"data.0: .*x.jsonl: none of the first 4 lines is a JSON object"):
        run(tmp_path / "out", {"path": tmp_path / "x.jsonl"})


def test_a_data_set_within_another_is_counted(tmp_path: Path):
    rows = questions(4)
    paths = [write(tmp_path / "x.jsonl", rows), write(tmp_path / "y.jsonl", rows)]
    assert len(run(tmp_path / "out", *({"path": path} for path in paths), **NO_EVAL)["sft/train"]) == 4
    assert [entry["dropped"] for entry in funnel(tmp_path / "out")] == [{}, {"duplicate": 4}]
    held = {"name": "held", "path": str(paths[0]), "columns": ["prompt"]}
    with pytest.raises(
        UserError, match=r"data: no record is left: .*x.jsonl: 4 for contaminated: held \(an evaluation set"
    ):
        run(tmp_path / "none", {"path": paths[0]}, overlap={"evaluation_sets": [held]})


def test_two_files_of_one_name(tmp_path: Path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
    paths = [write(tmp_path / f"{name}/x.jsonl", [*questions(3, name), {}]) for name in "ab"]
    run(tmp_path / "out", *({"path": path} for path in paths))
    assert [entry["dataset"] for entry in funnel(tmp_path / "out")] == ["x", "x.2"]
    files = sorted(path.name for path in (tmp_path / "out/rejected").iterdir())
    assert files == ["import-x.2.jsonl", "import-x.jsonl"]


@pytest.mark.parametrize(
    ("rows", "entry", "message"),
    [
        ([{"text": "x"}], {}, "no format has the columns text: a plain text has no turns"),
        ([{"question": "x", "answer": "y"}], {}, "columns.prompt=question columns.completion=answer"),
        ([{"a": "x"}], {}, "no format has the columns a: name them, for example columns.prompt=COLUMN"),
        ([{"prompt": "x", "completion": "y"}], {"kind": "dpo"}, "no format of dpo has the columns prompt, completion"),
        ([{"messages": [], "chosen": [], "rejected": []}], {}, "fit several formats, .*: set kind=sft or kind=dpo"),
        ([{"messages": [], "conversations": []}], {}, "fit several formats, .*: name those to read"),
        ([{"prompt": "x", "completion": "y"}], {"columns": {"completion": "z"}}, "no row has the column 'z'"),
        (
            [{"question": "x", "chosen": "y", "rejected": "z"}],
            {},
            "is question the prompt\\? then give columns.prompt=question",
        ),
        ([{"prompt": "x", "completion": "y", "label": False}], {}, "does label say which answers are bad"),
        ([], {}, "empty data set"),
        ([[1], [2]], {}, "none of the first 2 rows is an object with columns"),
        ([{"prompt": "x"}], {"adapter": "FuseAI/FuseChat-3.0-DPO-Data"}, "no format of dpo has the columns prompt"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, rows: list[Any], entry: dict[str, Any], message: str):
    path = write(tmp_path / "x.jsonl", rows)
    with pytest.raises(UserError, match=rf"data.0: .*x.jsonl: .*{message}") as error:
        run(tmp_path / "out", {"path": path, **entry})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"path": "a"}, {"path": "b", "weight": 1}], "a has no weight, but others have"),
        ([{"path": "a", "eval": True}], "all of it is for evaluation"),
        ([{"path": "a", "eval": True, "weight": 1}], "for evaluation has no weight"),
        ([{"path": "a", "adapter": "b/c"}], "adapter 'b/c' is none of FuseAI/FuseChat-3.0-SFT-Data"),
        ([{"path": "a", "adapter": next(iter(KNOWN)), "columns": {"id": "x"}}], "an adapter knows the columns"),
        (
            [{"path": "a", "adapter": "AALF/ultrafeedback_wrpo", "kind": "sft"}],
            "kind: AALF/ultrafeedback_wrpo is read as wrpo, not as sft",
        ),
    ],
)
def test_impossible_configs(data: list[dict[str, Any]], message: str):
    with pytest.raises(ValueError, match=message):
        ImportConfig.model_validate({"output_dir": "x", "data": data})


def test_scores_are_optional(tmp_path: Path):
    rows, _ = DPO["texts"]
    scored = [{**row, "score_chosen": n, "rejected-rating": None if n % 2 else 0.5} for n, row in enumerate(rows)]
    found = run(tmp_path / "out", {"path": write(tmp_path / "x.jsonl", scored)}, **NO_EVAL)["dpo/train"]
    pairs = {(r.chosen_score, r.rejected_score) for r in found if isinstance(r, PreferencePair)}
    assert pairs == {(float(n), None if n % 2 else 0.5) for n in range(10)}
    bare = run(tmp_path / "bare", {"path": write(tmp_path / "x.jsonl", rows)}, **NO_EVAL)["dpo/train"]
    assert {dataclasses.astuple(record)[-2:] for record in bare} == {(None, None)}
