"""The sampler around the trainer's decoder, against the one of transformers."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.config import PipelineConfig, SamplerConfig, SourceConfig
from data_pipeline.distributions.opening import name_of
from data_pipeline.sampling.backends.jax_sampler import JaxSampler
from data_pipeline.sampling.backends.opening import open_sampler
from data_pipeline.sampling.backends.transformers_sampler import TransformersSampler
from data_pipeline.sampling.chat import ChatTokenizer
from data_pipeline.sampling.sampler import Answer, Request, Sampling
from fusejax.common.cli import UserError

QUESTIONS = ["hi", "What is 3 + 4?", "Write a function add that adds.", "你好", "say " + "hello " * 12]
CONFIG = SamplerConfig(batch_size=4, dtype="float32")
NEW = 12
"""Most tokens of an answer; one of the questions gets fewer, as near the end of a context."""


def source(directory: Path) -> SourceConfig:
    return SourceConfig(name="s", model=str(directory), backend="jax")


def requests(directory: Path, **sampling: Any) -> list[Request]:
    how = Sampling(**({"temperature": 0} | sampling))
    tokenizer = ChatTokenizer("s", directory, None)
    prompts = [tuple(tokenizer.encode([{"role": "user", "content": text}])) for text in QUESTIONS]
    return [Request(f"{i}", prompt, i, 5 if i == 3 else NEW, how) for i, prompt in enumerate(prompts)]


def answers(sampler: Any, wanted: Sequence[Request], done: Sequence[str] = ()) -> dict[str, Answer]:
    return {request.key: answer for batch in sampler.generate(wanted, done) for request, answer in batch}


@pytest.fixture(scope="module")
def sampler(checkpoint: Path) -> JaxSampler:
    return JaxSampler(CONFIG, source(checkpoint), checkpoint)


@pytest.fixture(scope="module")
def whole(sampler: JaxSampler, checkpoint: Path) -> dict[str, Answer]:
    return answers(sampler, requests(checkpoint))


def test_the_same_answers_as_transformers(whole: dict[str, Answer], checkpoint: Path):
    """Texts, ends and counts; some end by a token, some at their limit."""
    assert whole == answers(TransformersSampler(CONFIG, source(checkpoint), checkpoint), requests(checkpoint))
    assert {answer.finish_reason for answer in whole.values()} == {"stop", "length"}
    assert whole["3"].completion_tokens <= 5 < max(answer.completion_tokens for answer in whole.values())


def test_the_same_answers_where_texts_stop_them(sampler: JaxSampler, whole: dict[str, Answer], checkpoint: Path):
    text = max((answer.text for answer in whole.values()), key=len)
    wanted = requests(checkpoint, stop=("☃", text[len(text) // 2 :][:2]))
    found = answers(sampler, wanted)
    assert found == answers(TransformersSampler(CONFIG, source(checkpoint), checkpoint), wanted)
    assert any(answer.completion_tokens < whole[key].completion_tokens for key, answer in found.items())


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0, "top_p": 0.9, "min_p": 0.01},
        {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.3},
        {"presence_penalty": 1.5, "frequency_penalty": 0.5},
    ],
)
def test_the_same_draws_as_transformers(
    sampler: JaxSampler, whole: dict[str, Answer], checkpoint: Path, sampling: dict[str, Any]
):
    """Of a row's own numbers, whatever is beside it."""
    wanted = requests(checkpoint, **sampling)
    found = answers(sampler, wanted)
    assert found == answers(TransformersSampler(CONFIG, source(checkpoint), checkpoint), wanted) != whole
    assert answers(sampler, wanted, ["0", "2"]) == {key: each for key, each in found.items() if key not in ("0", "2")}


def test_going_on_changes_nothing(sampler: JaxSampler, whole: dict[str, Answer], checkpoint: Path):
    wanted = requests(checkpoint)
    for done in (["0"], ["1", "2", "3"], list(whole)):
        left = answers(sampler, wanted, done)
        assert left == {key: answer for key, answer in whole.items() if key not in done}


def test_what_it_cannot_do_is_told(sampler: JaxSampler, checkpoint: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"token id 100000, but vocab_size"):
        answers(sampler, [Request("k", (5, 100000), 1, 4, Sampling(0))])
    half = tmp_path / "half"
    shutil.copytree(checkpoint, half)
    config = json.loads((half / "config.json").read_text())
    config.pop("torch_dtype", None)
    (half / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    with pytest.raises(UserError, match=r"^sources: s: sampler\.dtype: the checkpoint's own is float16"):
        JaxSampler(SamplerConfig(), source(half), half)


def test_the_configuration_opens_it(checkpoint: Path):
    values = {
        "output_dir": "out",
        "prompts": [{"path": "p.jsonl", "dataset": "d", "domain": "math"}],
        "sources": [{"name": "s", "model": str(checkpoint), "temperature": 0}],
        "sampler": {"backend": "jax"},
    }
    config = PipelineConfig.model_validate(values)
    (entry,) = config.sources
    assert open_sampler(config, entry, checkpoint, 100).engine.startswith("jax ")
    with pytest.raises(UserError, match="jax, which samples s, gives none; name another"):
        name_of(config, PipelineConfig.model_validate(values | {"distributions": {}}).distributions, entry)
