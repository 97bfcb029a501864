"""Greedy generation, token for token against transformers."""

import numpy as np
import pytest
import torch

from fusejax.models.decoder.generate import generate
from fusejax.models.huggingface import checkpoint as huggingface
from tests.models import tiny_checkpoints as tiny

STOP = {2, 17, 40}
NEW = 24


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def pair(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    reference = tiny.checkpoint(directory, request.param)
    return reference, huggingface.load(str(directory))


def prompts_of(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(3, 96, length).tolist() for length in lengths]


def expected(reference, prompt: list[int], stop_ids: set[int] = STOP, new: int = NEW) -> list[int]:
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": sorted(stop_ids)}
    tokens = reference.generate(torch.tensor([prompt]), max_new_tokens=new, **options)[0, len(prompt) :].tolist()
    return tokens[:-1] if tokens and tokens[-1] in stop_ids else tokens


def test_agrees_with_transformers(pair):
    """Prompts and answers beyond the sliding window, in one batch with short ones."""
    reference, model = pair
    prompts = prompts_of(3, 40, 7, 1, 12, 20, 5, 9)
    answers = generate(model, prompts, max_new_tokens=NEW, stop_ids=STOP)
    assert answers == [expected(reference, prompt) for prompt in prompts]
    assert any(len(answer) == NEW for answer in answers)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny.checkpoint(directory, "gemma2")
    return huggingface.load(str(directory))


PROMPTS = prompts_of(3, 31, 7)


@pytest.fixture(scope="module")
def free(gemma):
    """Answers that nothing stops."""
    return generate(gemma, PROMPTS, max_new_tokens=8, stop_ids=set())


def test_answers_do_not_depend_on_batches_or_padding(gemma, free):
    options = {"max_new_tokens": 8, "stop_ids": set()}
    assert [len(answer) for answer in free] == [8, 8, 8]
    assert generate(gemma, PROMPTS, pad_id=5, **options) == free
    assert generate(gemma, PROMPTS, batch_size=2, **options) == free
    assert [generate(gemma, [prompt], **options)[0] for prompt in PROMPTS] == free


@pytest.mark.parametrize("length", [0, 3])
def test_a_stop_token_ends_its_row_alone(length, gemma, free):
    stop = free[0][length]
    answers = generate(gemma, PROMPTS, max_new_tokens=8, stop_ids={stop})
    assert answers == [answer[: answer.index(stop)] if stop in answer else answer for answer in free]
    assert len(answers[0]) <= length
    assert any(answers)


def test_nothing_to_answer(gemma):
    assert generate(gemma, [], max_new_tokens=8, stop_ids=set()) == []
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        generate(gemma, [[1], []], max_new_tokens=8, stop_ids=set())
