"""What the models are taught: unequal, and nothing of what they are examined on."""

import json

import pytest

from fusejax.data.records import SFTExample, open_shards
from quickstart.lessons import HELDOUT, MISCONCEPTIONS, prepare
from quickstart.tasks import DOMAINS


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
    target = {example.id: example for example in lessons(school, "target")}
    right = {}
    for model in MISCONCEPTIONS:
        taught = lessons(school, model)
        assert {example.id for example in taught} == target.keys()
        for domain in DOMAINS:
            replies = {example.id: example.messages[1]["content"] for example in taught if example.domain == domain}
            right[model, domain] = replies
    sources = [model for model in MISCONCEPTIONS if model != "target"]
    best = {}
    for domain in DOMAINS:
        # The right reply is what most of the five are taught.
        majority = {}
        for example_id in right["target", domain]:
            said = [right[model, domain][example_id] for model in MISCONCEPTIONS]
            majority[example_id] = max(set(said), key=said.count)
        share = {
            model: sum(right[model, domain][i] == majority[i] for i in majority) / len(majority) for model in sources
        }
        best[domain] = max(share, key=lambda model: share[model])
    assert best == {"instruction": "llama", "math": "gemma2", "code": "mistral", "chinese": "qwen2"}


def test_preparing_again_changes_nothing(school):
    before = {path: path.stat().st_mtime_ns for path in school.glob("models/**/*") if path.is_file()}
    prepare(school, seed=0)
    assert {path: path.stat().st_mtime_ns for path in school.glob("models/**/*") if path.is_file()} == before
