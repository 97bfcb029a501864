"""Pretrained models: `make test-real` runs these tests; they download some hundred megabytes once."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.pretrained import MODELS, pretrained
from tests.real.texts import twenty

# Gemma 3 is pretrained only: its vocabulary has the turns of its chat models, but it comes without a template.
GEMMA_TURNS = (
    "{{ bos_token }}{% for message in messages %}"
    "<start_of_turn>{{ {'assistant': 'model'}.get(message['role'], message['role']) }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Real:
    """A pretrained model, as transformers has it, and texts for it."""

    name: str
    directory: Path
    reference: Any
    tokenizer: Any
    texts: list[list[int]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is here, so that `make test` leaves it out."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("real")


@pytest.fixture(scope="session", params=sorted(MODELS))
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Real:
    source = pretrained(request.param)
    directory = tmp_path_factory.mktemp("real") / request.param
    directory.mkdir()
    for file in source.iterdir():
        (directory / file.name).symlink_to(file)
    if not (directory / "chat_template.jinja").exists():
        (directory / "chat_template.jinja").write_text(GEMMA_TURNS)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return Real(request.param, directory, model, tokenizer, twenty(tokenizer))
