"""The transformers sampler against transformers itself, and the stage that survives being killed."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import transformers

from data_pipeline import prompts, sample
from data_pipeline.config import PipelineConfig, SamplerConfig, SourceConfig
from data_pipeline.samplers import checkpoint as checkpoints
from data_pipeline.samplers import transformers_sampler
from data_pipeline.samplers.base import Answer, Request
from data_pipeline.samplers.transformers_sampler import TransformersSampler, choose
from fusejax.cli import UserError
from tests.data_pipeline.helpers import make_checkpoint, write_jsonl

QUESTIONS = ["hi", "What is 3 + 4?", "Write a function add that adds.", "你好", "say " + "hello " * 12]


def sampler(directory: Path, max_new_tokens: int = 24, batch_size: int = 64, **source: Any) -> TransformersSampler:
    config = SamplerConfig(batch_size=batch_size, dtype="float32")
    return TransformersSampler(config, SourceConfig(name="s", model=str(directory), **source), max_new_tokens)


def requests(count: int = 1, texts: Sequence[str] = QUESTIONS) -> list[Request]:
    return [
        Request([{"role": "user", "content": text}], 1000 * n + i) for n in range(count) for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_equals_transformers(family: str, penalty: float, request: pytest.FixtureRequest):
    """Alone and batched with padding, with compaction, and beyond Gemma's sliding window."""
    directory = request.getfixturevalue("checkpoint" if family == "llama" else "gemma_checkpoint")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    answers = sampler(directory, temperature=0, repetition_penalty=penalty).generate(requests())
    for text, answer in zip(QUESTIONS, answers, strict=True):
        turns = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, repetition_penalty=penalty
        )[0, ids.shape[1] :].tolist()
        stopped = out[-1] in model.generation_config.eos_token_id
        expected = tokenizer.decode(out[:-1] if stopped else out, skip_special_tokens=True)
        reason = "stop" if stopped else "length"
        assert answer == Answer(expected, reason, ids.shape[1], len(out)), text


def test_an_answer_does_not_depend_on_its_neighbours(checkpoint: Path):
    wanted = requests(4)
    together = sampler(checkpoint, temperature=1.0).generate(wanted)
    assert sampler(checkpoint, batch_size=3, temperature=1.0).generate(wanted) == together
    alone = sampler(checkpoint, batch_size=1, temperature=1.0)
    assert [alone.generate([request])[0] for request in wanted] == together
    assert sampler(checkpoint, temperature=1.0).generate(wanted[::-1]) == together[::-1]
    assert len({answer.text for answer in together}) > len(QUESTIONS)  # The seeds do make a difference.


def test_choose_follows_temperature_and_nucleus():
    probabilities = torch.tensor([0.1, 0.5, 0.25, 0.15])
    uniform = torch.linspace(0, 1, 20001)[:-1]
    logits = probabilities.log().expand(len(uniform), -1)

    def shares(**source: Any) -> list[float]:
        tokens = choose(logits, uniform, None, SourceConfig(name="s", model="m", **source))
        return (torch.bincount(tokens, minlength=4) / len(uniform)).tolist()

    assert shares(temperature=1, top_p=1) == pytest.approx([0.1, 0.5, 0.25, 0.15], abs=1e-3)
    assert shares(temperature=1, top_p=0.76) == pytest.approx([0, 5 / 9, 2.5 / 9, 1.5 / 9], abs=1e-3)
    assert shares(temperature=1, top_p=0.5) == [0, 1, 0, 0]  # Reached, not exceeded.
    squared = probabilities**2
    assert shares(temperature=0.5, top_p=1) == pytest.approx((squared / squared.sum()).tolist(), abs=1e-3)
    assert shares(temperature=0) == [0, 1, 0, 0]


def test_choose_penalises_what_was_said():
    logits = torch.tensor([[2.0, 1.8, -1.0], [-2.0, -2.1, -9.0]])
    seen = torch.tensor([[True, False, False], [True, False, False]])
    source = SourceConfig(name="s", model="m", temperature=0, repetition_penalty=1.2)
    assert choose(logits, torch.zeros(2), seen, source).tolist() == [1, 1]
    assert choose(logits, torch.zeros(2), ~seen & False, source).tolist() == [0, 0]


def test_requests_that_cannot_be_asked_become_errors(gemma_checkpoint: Path):
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    folded = [{"role": "user", "content": "Be brief.\n\nhi"}]
    wanted = [Request(system, 1), Request(folded, 1), Request(system[:1], 1), *requests(texts=["x" * 400])]
    answers = sampler(gemma_checkpoint).generate(wanted)
    assert answers[0] == answers[1] and answers[0].finish_reason != "error"
    assert answers[2].error == "chat_template: no system turn"
    assert answers[3].finish_reason == "error"
    assert answers[3].error is not None and answers[3].error.startswith("prompt_too_long: ")


def test_the_context_bounds_the_answer(checkpoint: Path):
    (answer,) = sampler(checkpoint, max_new_tokens=10_000, temperature=0.01).generate(requests(texts=["x" * 200]))
    assert answer.prompt_tokens + answer.completion_tokens <= 256


def test_checkpoints_that_cannot_serve(tmp_path: Path, checkpoint: Path):
    with pytest.raises(UserError, match="no such directory"):
        sampler(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        sampler(tmp_path / "empty")
    plain = make_checkpoint(tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        sampler(plain)
    broken = make_checkpoint(tmp_path / "broken")
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="cannot be loaded"):
        sampler(broken)


def test_fingerprint_sees_other_weights(tmp_path: Path, checkpoint: Path):
    same, other = make_checkpoint(tmp_path / "same", seed=0), make_checkpoint(tmp_path / "other", seed=1)
    assert checkpoints.fingerprint(same) == checkpoints.fingerprint(checkpoint) != checkpoints.fingerprint(other)


class FakeSampler:
    """Answers with its seed, and counts; fails after so many calls, as a killed run would end."""

    engine = "fake 1"

    def __init__(self, fail_after: int = 10**9):
        self.asked: list[int] = []
        self._calls_left = fail_after

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        if not self._calls_left:
            raise KeyboardInterrupt
        self._calls_left -= 1
        self.asked += [request.seed for request in requests]
        return [Answer(f"answer {request.seed}", "stop", 1, 1) for request in requests]


@pytest.fixture
def stage(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that runs the stage with a fake sampler and gives the table (None if it was killed)."""
    file = write_jsonl(tmp_path / "p.jsonl", [{"id": f"p{n}", "prompt": f"q{n}"} for n in range(10)])

    def run(
        fake: FakeSampler, output: str = "out", prompts_file: Path = file, dtype: str = "auto", **source: Any
    ) -> pl.DataFrame | None:
        monkeypatch.setattr(sample, "open_sampler", lambda *_: fake)
        config = PipelineConfig.model_validate(
            {
                "output_dir": str(tmp_path / output),
                "prompts": [{"path": str(prompts_file), "dataset": "d", "domain": "instruction"}],
                "sources": [{"name": "s", "model": str(checkpoint), **source}],
                "sampler": {"chunk_size": 8, "dtype": dtype},
                "samples_per_prompt": {"instruction": 3},
            }
        )
        prompts.run(config)
        try:
            sample.run(config)
        except KeyboardInterrupt:
            return None
        return pl.read_parquet(tmp_path / output / "samples/s.parquet")

    return run


def test_a_killed_run_goes_on_where_it_was(stage: Any):
    whole = stage(FakeSampler(), output="whole")
    first, second = FakeSampler(fail_after=2), FakeSampler()
    assert stage(first) is None
    resumed = stage(second)
    assert (len(first.asked), len(second.asked)) == (16, 14) and not set(first.asked) & set(second.asked)
    assert resumed.equals(whole)
    assert resumed.schema == sample.SCHEMA
    answers = resumed.select("prompt_id", "sample_index").rows()
    assert sorted(answers) == [(f"p{n}", i) for n in range(10) for i in range(3)]
    assert resumed["seed"].n_unique() == 30


def test_nothing_is_asked_twice(stage: Any, tmp_path: Path):
    stage(FakeSampler())
    assert (again := FakeSampler()) and stage(again) is not None and again.asked == []
    grown = write_jsonl(tmp_path / "grown.jsonl", [{"id": f"p{n}", "prompt": f"q{n}"} for n in range(12)])
    stage(more := FakeSampler(), prompts_file=grown)
    assert len(more.asked) == 6
    assert len(stage(warmer := FakeSampler(), temperature=0.9)) == 30
    assert len(warmer.asked) == 30


def test_answers_not_wanted_now_are_kept(stage: Any, tmp_path: Path):
    whole = stage(FakeSampler())
    few = write_jsonl(tmp_path / "few.jsonl", [{"id": f"p{n}", "prompt": f"q{n}"} for n in range(2)])
    assert len(stage(FakeSampler(), prompts_file=few)) == 6
    assert stage(again := FakeSampler()).equals(whole) and again.asked == []
    # The table alone is enough, too.
    shutil.rmtree(tmp_path / "out/samples/.answers")
    stage(FakeSampler(), prompts_file=few)
    assert stage(again := FakeSampler()).equals(whole) and again.asked == []


def test_another_dtype_is_asked_anew(stage: Any):
    stage(FakeSampler())
    stage(again := FakeSampler(), dtype="bfloat16")
    assert len(again.asked) == 30


def test_fingerprint_sees_a_change_amid_a_large_file(tmp_path: Path):
    for name in ("model.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(bytes(10 * 2**20))
        before = checkpoints.fingerprint(tmp_path)
        with (tmp_path / name).open("r+b") as file:
            file.seek(5 * 2**20 + 12345)
            file.write(b"x")
        assert checkpoints.fingerprint(tmp_path) != before


def test_threads_are_given_back(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    before = torch.get_num_threads()
    sampler(checkpoint)
    assert torch.get_num_threads() == 1
    monkeypatch.setattr(transformers_sampler, "SMALL_MODEL", 0)
    sampler(checkpoint)
    assert torch.get_num_threads() == before or before == 1


def test_a_foreign_samples_file_is_not_overwritten(stage: Any, tmp_path: Path):
    (tmp_path / "out/samples").mkdir(parents=True)
    pl.DataFrame({"text": ["precious"]}).write_parquet(tmp_path / "out/samples/s.parquet")
    with pytest.raises(UserError, match=r"s\.parquet: no column 'key'.*move it away"):
        stage(FakeSampler())
