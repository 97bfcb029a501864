"""What the models are taught: unequal, and nothing of what they are examined on."""

import json

import pytest

from fusejax.data.records import SFTExample, open_shards
from quickstart.lessons import HELDOUT, LESSONS, MISCONCEPTIONS, prepare
from quickstart.tasks import DOMAINS, draw


@pytest.fixture(scope="module")
def school(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    prepare(folder, seed=0)
    return folder


def prompts(school, name):
    lines = (school / "prompts" / f"{name}.jsonl").read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def lessons(school, model):
    examples = open_shards(school / "models" / model / "lessons" / "train")
    return [example for example in examples if isinstance(example, SFTExample)]


def test_no_examination_prompt_is_a_lesson_or_asked_of_the_sources(school):
    heldout = {row["messages"][0]["content"] for row in prompts(school, "heldout")}
    assert len(heldout) == HELDOUT * len(DOMAINS)
    asked = {row["messages"][0]["content"] for domain in DOMAINS for row in prompts(school, domain)}
    taught = {example.messages[0]["content"] for model in MISCONCEPTIONS for example in lessons(school, model)}
    assert not heldout & (asked | taught)


def test_each_source_is_taught_best_in_another_domain(school):
    right = {
        f"{domain}-{number}": task.reference
        for domain, count in LESSONS.items()
        for number, task in enumerate(draw(domain, "train", count, "0/lessons"))
    }
    share = {}
    for model in MISCONCEPTIONS:
        taught = lessons(school, model)
        assert {example.id for example in taught} == right.keys()
        for domain in DOMAINS:
            replies = [(each.id, each.messages[1]["content"]) for each in taught if each.domain == domain]
            share[domain, model] = sum(reply == right[each] for each, reply in replies) / len(replies)
    sources = [model for model in MISCONCEPTIONS if model != "target"]
    best = {domain: max(sources, key=lambda model, domain=domain: share[domain, model]) for domain in DOMAINS}
    assert best == {"instruction": "llama", "math": "gemma2", "code": "mistral", "chinese": "qwen2"}
    for domain in DOMAINS:
        assert share[domain, "target"] < min(share[domain, model] for model in sources)


def test_preparing_again_changes_nothing(school):
    before = {path: path.stat().st_mtime_ns for path in school.glob("models/**/*") if path.is_file()}
    prepare(school, seed=0)
    assert {path: path.stat().st_mtime_ns for path in school.glob("models/**/*") if path.is_file()} == before


def test_what_is_hard_is_hard_for_all(school):
    """Else pairs of a source's answers push down mistakes that the target does not make. A code task has one skill."""
    tasks = {f"code-{i}": task for i, task in enumerate(draw("code", "train", LESSONS["code"], "0/lessons"))}
    mistaken = {
        model: {
            tasks[each.id].skills[0]
            for each in lessons(school, model)
            if each.domain == "code" and each.messages[1]["content"] != tasks[each.id].reference
        }
        for model in ("mistral", "qwen2", "target")
    }
    assert mistaken["mistral"] < mistaken["qwen2"] < mistaken["target"]
