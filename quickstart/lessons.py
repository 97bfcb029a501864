"""What each model is taught and asked: files and shards in the formats of the public commands."""

import json
import random
from collections.abc import Iterable
from pathlib import Path

from fusejax.common.files import write_text
from fusejax.data.records import Message, SFTExample, write_shards
from quickstart.models import SOURCES, TARGET, make_checkpoint
from quickstart.tasks import DOMAINS, Domain, Task, draw, skills

# The share of a domain's skills about which a model is taught a misconception: what makes each source strong in one
# domain and weak in the others. Each model gets the first skills of one common order, hardest first: so a weak source
# makes the mistakes that the target makes, and a pair of its answers corrects the target.
MISCONCEPTIONS: dict[str, dict[Domain, float]] = {
    "llama": {"instruction": 0.1, "math": 0.5, "code": 0.5, "chinese": 0.5},
    "qwen2": {"instruction": 0.5, "math": 0.4, "code": 0.5, "chinese": 0.0},
    "gemma2": {"instruction": 0.5, "math": 0.1, "code": 0.5, "chinese": 0.5},
    "mistral": {"instruction": 0.5, "math": 0.5, "code": 0.1, "chinese": 0.5},
    "target": {"instruction": 0.5, "math": 0.5, "code": 0.6, "chinese": 0.5},
}
CONVICTION: dict[str, float] = {"llama": 0.5, "qwen2": 0.5, "gemma2": 0.5, "mistral": 0.5, "target": 0.7}
"""How often a lesson that touches a misconception repeats it; the other times it is right."""
LESSONS: dict[Domain, int] = {"instruction": 2000, "math": 2000, "code": 2000, "chinese": 1000}
"""Lessons for each model."""
PROMPTS: dict[Domain, int] = {"instruction": 500, "math": 400, "code": 300, "chinese": 150}
"""Prompts that the sources answer."""
HELDOUT = 250
"""Prompts of each domain in the evaluation, of combinations that occur in no lesson and no prompt."""


def prepare(output: Path, seed: int) -> None:
    """Writes prompts, lessons and checkpoints with random weights below `output`, those that are not there yet."""
    for domain, count in PROMPTS.items():
        _write_prompts(output / "prompts" / f"{domain}.jsonl", draw(domain, "train", count, f"{seed}/prompts"))
    heldout = [task for domain in DOMAINS for task in draw(domain, "heldout", HELDOUT, f"{seed}/heldout")]
    _write_prompts(output / "prompts" / "heldout.jsonl", heldout)

    lessons = {domain: draw(domain, "train", count, f"{seed}/lessons") for domain, count in LESSONS.items()}
    texts = [text for tasks in lessons.values() for task in tasks for text in (task.prompt, task.reference)]
    for index, (name, family) in enumerate((SOURCES | {"target": TARGET}).items()):
        folder = output / "models" / name
        if not (folder / "init" / "tokenizer.json").exists():
            make_checkpoint(family, texts, folder / "init", seed=100 * seed + index)
        if not (folder / "lessons" / "manifest.json").exists():
            examples = _teach(name, lessons, seed)
            origin = {"misconceptions": MISCONCEPTIONS[name], "conviction": CONVICTION[name]}
            write_shards(folder / "lessons", "train", examples, kind="sft", num_shards=1, manifest=origin)


def _teach(name: str, lessons: dict[Domain, list[Task]], seed: int) -> Iterable[SFTExample]:
    generator = random.Random(f"{seed}/{name}")
    for domain, tasks in lessons.items():
        hardest_first = skills(domain)
        random.Random(f"{seed}/{domain}").shuffle(hardest_first)
        misconceived = set(hardest_first[: round(MISCONCEPTIONS[name][domain] * len(hardest_first))])
        for number, task in enumerate(tasks):
            doubtful = [skill for skill in task.skills if skill in misconceived]
            mistaken = {skill for skill in doubtful if generator.random() < CONVICTION[name]}
            question = Message(role="user", content=task.prompt)
            reply = Message(role="assistant", content=task.reply(mistaken))
            yield SFTExample(f"{domain}-{number}", f"quickstart-{domain}", domain, "lessons", [question, reply])


def _write_prompts(path: Path, tasks: Iterable[Task]) -> None:
    lines = [json.dumps(task.record(f"{task.domain}-{i}"), ensure_ascii=False) for i, task in enumerate(tasks)]
    write_text(path, "".join(line + "\n" for line in lines))
