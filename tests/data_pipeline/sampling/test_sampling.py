"""The transformers sampler against transformers itself, and the stage that survives being killed."""

import dataclasses
import itertools
import json
import shutil
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pydantic
import pytest
import torch
import transformers
from etils import epath

from data_pipeline.config import PipelineConfig, SamplerConfig, SourceConfig
from data_pipeline.prompts import stage as prompts
from data_pipeline.sampling import answer_store, flaws
from data_pipeline.sampling import checkpoint as checkpoints
from data_pipeline.sampling import stage as sample
from data_pipeline.sampling.backends import transformers_sampler
from data_pipeline.sampling.backends.transformers_sampler import TransformersSampler, choose
from data_pipeline.sampling.chat import ChatTokenizer, Refused
from data_pipeline.sampling.sampler import Answer, Answered, Request, Sampling
from fusejax.common.cli import UserError
from tests.data_pipeline.helpers import make_checkpoint, write_jsonl

QUESTIONS = ["hi", "What is 3 + 4?", "Write a function add that adds.", "你好", "say " + "hello " * 12]


GREEDY, WARM = Sampling(0), Sampling(1.0, top_p=0.95)


def sampler(directory: Path, batch_size: int = 64) -> TransformersSampler:
    config = SamplerConfig(batch_size=batch_size, dtype="float32")
    return TransformersSampler(config, SourceConfig(name="s", model=str(directory)), directory)


def requests(
    directory: Path, count: int = 1, max_new_tokens: int = 24, sampling: Sequence[Sampling] = (WARM,)
) -> list[Request]:
    """The samplings take turns."""
    tokenizer = ChatTokenizer("s", directory, None)
    prompts = [tuple(tokenizer.encode([{"role": "user", "content": text}])) for text in QUESTIONS]
    turns = itertools.cycle(sampling)
    return [
        Request(f"{n}-{i}", prompt, 1000 * n + i, min(max_new_tokens, tokenizer.context - len(prompt)), next(turns))
        for n in range(count)
        for i, prompt in enumerate(prompts)
    ]


def answers_of(sampler: Any, wanted: Sequence[Request], done: Container[str] = ()) -> list[Answer]:
    """In the order of the requests."""
    found = {request.key: answer for batch in sampler.generate(wanted, done) for request, answer in batch}
    return [found[request.key] for request in wanted if request.key not in done]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_equals_transformers(family: str, penalty: float, request: pytest.FixtureRequest):
    """Alone and batched with padding, with compaction, and beyond Gemma's sliding window."""
    directory = request.getfixturevalue("checkpoint" if family == "llama" else "gemma_checkpoint")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    wanted = requests(directory, sampling=[Sampling(0, repetition_penalty=penalty)])
    answers = answers_of(sampler(directory), wanted)
    for text, answer in zip(QUESTIONS, answers, strict=True):
        turns = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, repetition_penalty=penalty
        )[0, ids.shape[1] :].tolist()
        stopped = out[-1] in model.generation_config.eos_token_id
        expected = tokenizer.decode(out[:-1] if stopped else out, skip_special_tokens=True)
        reason = "stop" if stopped else "length"
        assert answer == Answer(expected, reason, len(out)), text


def test_an_answer_does_not_depend_on_its_neighbours(checkpoint: Path):
    """Nor on which of them are sampled otherwise."""
    wanted = requests(checkpoint, 4, sampling=[WARM, GREEDY, Sampling(1.0, top_k=3, repetition_penalty=1.3)])
    together = answers_of(sampler(checkpoint), wanted)
    assert answers_of(sampler(checkpoint, batch_size=3), wanted) == together
    alone = sampler(checkpoint, batch_size=1)
    assert [answers_of(alone, [request])[0] for request in wanted] == together
    assert answers_of(sampler(checkpoint), wanted[::-1]) == together[::-1]
    assert len({answer.text for answer in together}) > len(QUESTIONS)  # The seeds do make a difference.
    greedy = [(r.prompt, answer.text) for r, answer in zip(wanted, together, strict=True) if r.sampling == GREEDY]
    assert len(set(greedy)) == len({prompt for prompt, _ in greedy}) < len(greedy)


def test_going_on_forms_the_same_batches(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    model, wanted = sampler(checkpoint, batch_size=4), requests(checkpoint, 2)
    formed: list[list[str]] = []
    monkeypatch.setattr(
        model, "_generate_batch", lambda batch: formed.append([r.key for r in batch]) or [[0]] * len(batch)
    )
    whole = [{request.key for request, _ in batch} for batch in model.generate(wanted, ())]
    before, formed[:] = [*formed], []
    list(model.generate(wanted, whole[0]))
    assert len(before) == 3 and formed == before[1:]
    # What was done apart from its batch is not asked again.
    assert {r.key for batch in model.generate(wanted, {before[1][0]}) for r, _ in batch} == {r.key for r in wanted} - {
        before[1][0]
    }


def test_choose_follows_temperature_and_nucleus():
    probabilities = torch.tensor([0.1, 0.5, 0.25, 0.15])
    uniform = torch.linspace(0, 1, 20001)[:-1]
    logits = probabilities.log().expand(len(uniform), -1)

    def shares(**sampling: Any) -> list[float]:
        tokens = choose(logits, uniform, None, None, Sampling(**sampling))
        return (torch.bincount(tokens, minlength=4) / len(uniform)).tolist()

    assert shares(temperature=1, top_p=1) == pytest.approx([0.1, 0.5, 0.25, 0.15], abs=1e-3)
    assert shares(temperature=1, top_p=0.76) == pytest.approx([0, 5 / 9, 2.5 / 9, 1.5 / 9], abs=1e-3)
    assert shares(temperature=1, top_p=0.5) == [0, 1, 0, 0]  # Reached, not exceeded.
    squared = probabilities**2
    assert shares(temperature=0.5, top_p=1) == pytest.approx((squared / squared.sum()).tolist(), abs=1e-3)
    assert shares(temperature=0) == [0, 1, 0, 0]


def test_choose_follows_top_k_and_min_p():
    probabilities = torch.tensor([0.1, 0.5, 0.25, 0.15])
    uniform = torch.linspace(0, 1, 20001)[:-1]
    logits = probabilities.log().expand(len(uniform), -1)

    def shares(**sampling: Any) -> list[float]:
        tokens = choose(logits, uniform, None, None, Sampling(1, **sampling))
        return (torch.bincount(tokens, minlength=4) / len(uniform)).tolist()

    assert shares(top_k=2) == pytest.approx([0, 2 / 3, 1 / 3, 0], abs=1e-3)
    assert shares(top_k=9) == pytest.approx(probabilities.tolist(), abs=1e-3)
    assert shares(top_k=1) == [0, 1, 0, 0]
    assert shares(top_k=2, top_p=0.6) == [0, 1, 0, 0]  # The nucleus is of what top-k leaves.
    assert shares(min_p=0.3) == pytest.approx([0, 5 / 9, 2.5 / 9, 1.5 / 9], abs=1e-3)
    assert shares(min_p=0.5) == pytest.approx([0, 2 / 3, 1 / 3, 0], abs=1e-3)  # Reached, not exceeded.
    assert shares(min_p=1.0, top_k=3) == [0, 1, 0, 0]


def test_choose_penalises_what_was_said():
    logits = torch.tensor([[2.0, 1.8, -1.0], [-2.0, -2.1, -9.0]])
    seen = torch.tensor([[True, False, False], [True, False, False]])
    sampling = Sampling(0, repetition_penalty=1.2)
    assert choose(logits, torch.zeros(2), seen, None, sampling).tolist() == [1, 1]
    assert choose(logits, torch.zeros(2), ~seen & False, None, sampling).tolist() == [0, 0]


def test_choose_penalises_what_the_answer_said():
    """The formula of OpenAI's API: frequency times the count, and presence once."""
    logits, said = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[2, 1, 0]])

    def chosen(**penalties: float) -> int:
        return int(choose(logits, torch.zeros(1), None, said, Sampling(0, **penalties)))

    assert [chosen(frequency_penalty=value) for value in (0.9, 1.1, 1.6)] == [0, 2, 2]
    assert [chosen(presence_penalty=value) for value in (0.9, 1.9, 2.1)] == [0, 0, 2]
    assert chosen(frequency_penalty=0.4, presence_penalty=1.3) == 2  # 3 - 0.8 - 1.3 < 1.
    assert choose(logits, torch.zeros(1), None, said * 0, Sampling(0, presence_penalty=2)).tolist() == [0]


def test_penalties_are_for_the_answer_alone(checkpoint: Path):
    """A greedy answer, each token of which is what the model itself says once the answer's tokens are penalised."""
    (request, *_) = requests(checkpoint, sampling=[Sampling(0, presence_penalty=1.5, frequency_penalty=0.5)])
    source = sampler(checkpoint)
    (tokens,) = source._generate_batch([request])
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    logits = model(torch.tensor([[*request.prompt, *tokens]])).logits[0, len(request.prompt) - 1 : -1]
    for step, token in enumerate(tokens):
        said = torch.bincount(torch.tensor(tokens[:step], dtype=torch.long), minlength=logits.shape[1])
        assert int((logits[step] - 0.5 * said - 1.5 * (said > 0)).argmax()) == token
    assert source._generate_batch(requests(checkpoint, sampling=[GREEDY])[:1]) != [tokens]


def test_a_stop_text_ends_an_answer(checkpoint: Path):
    """Wherever it stands in the free answer: within a token, over several, at its beginning or end."""
    source, free = sampler(checkpoint, batch_size=4), requests(checkpoint, sampling=[GREEDY])
    for request, whole in zip(free, answers_of(source, free), strict=True):
        text = whole.text
        stops = {text[i : i + 3] for i in range(0, len(text) - 3, 5)} | {text[-1:]}
        asked = [dataclasses.replace(request, key=stop, sampling=Sampling(0, stop=("☃", stop))) for stop in stops]
        for stop, answer in zip(stops, answers_of(source, asked), strict=True):
            assert (answer.text, answer.finish_reason) == (text[: text.index(stop)], "stop")
            # It ended with the token that made it complete.
            assert answer.completion_tokens <= whole.completion_tokens
            before = dataclasses.replace(request, max_tokens=answer.completion_tokens - 1)
            assert answer.completion_tokens == 1 or stop not in answers_of(source, [before])[0].text


def test_conversations_that_cannot_be_asked(gemma_checkpoint: Path):
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    tokenizer = ChatTokenizer("s", gemma_checkpoint, None)
    assert tokenizer.encode(system) == tokenizer.encode([{"role": "user", "content": "Be brief.\n\nhi"}])
    with pytest.raises(Refused, match=r"^chat_template: no system turn$"):
        tokenizer.encode(system[:1])
    with pytest.raises(Refused, match=r"^prompt_too_long: [0-9]+ of 256 tokens$"):
        tokenizer.encode([{"role": "user", "content": "x" * 400}])
    just = len(tokenizer.encode(system))
    ChatTokenizer("s", gemma_checkpoint, just + 1).encode(system)
    with pytest.raises(Refused, match=f"{just} of {just} tokens"):
        ChatTokenizer("s", gemma_checkpoint, just).encode(system)


def test_checkpoints_that_cannot_serve(tmp_path: Path, checkpoint: Path):
    with pytest.raises(UserError, match="no such directory"):
        checkpoints.locate(str(tmp_path / "missing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        checkpoints.locate(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="a directory has no revision"):
        checkpoints.locate(str(checkpoint), "main")
    plain = make_checkpoint(tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        ChatTokenizer("s", plain, None)
    broken = make_checkpoint(tmp_path / "broken")
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="cannot be loaded"):
        sampler(broken)


def test_a_snapshot_of_the_hub_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[dict[str, Any]] = []
    snapshot = tmp_path / "models--org--m" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    monkeypatch.setattr(
        checkpoints.huggingface_hub, "snapshot_download", lambda model, **how: asked.append(how) or str(snapshot)
    )
    assert checkpoints.revision(checkpoints.locate("org/m", "v2", weights=False)) == "0123abc"
    assert asked[0]["revision"] == "v2" and "*.safetensors" not in asked[0]["allow_patterns"]
    checkpoints.locate("org/m")
    assert asked[1]["revision"] is None and "*.safetensors" in asked[1]["allow_patterns"]


def test_fingerprint_sees_other_weights(tmp_path: Path, checkpoint: Path):
    same, other = make_checkpoint(tmp_path / "same", seed=0), make_checkpoint(tmp_path / "other", seed=1)
    assert checkpoints.fingerprint(same) == checkpoints.fingerprint(checkpoint) != checkpoints.fingerprint(other)


class FakeSampler:
    """Answers with its seed, and counts; after so many answers it is interrupted, as a killed run would end."""

    engine = "fake 1"

    def __init__(self, fail_after: int = 10**9, text: str = "answer {}", error: str | None = None):
        self.asked: list[int] = []
        self.closed = 0
        self._left, self._text, self._error = fail_after, text, error

    def generate(self, requests: Sequence[Request], done: Container[str]) -> Iterator[Answered]:
        for request in requests:
            if request.key not in done:
                if not self._left:
                    raise KeyboardInterrupt
                self._left -= 1
                self.asked.append(request.seed)
                reason = "error" if self._error else "stop"
                yield [(request, Answer(self._text.format(request.seed), reason, 1, self._error))]

    def close(self) -> None:
        self.closed += 1


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
                "sampler": {"dtype": dtype},
                "max_new_tokens": 20,
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
    first, second = FakeSampler(fail_after=17), FakeSampler()
    assert stage(first) is None
    resumed = stage(second)
    assert (len(first.asked), len(second.asked), first.closed, second.closed) == (17, 13, 1, 1) and not set(
        first.asked
    ) & set(second.asked)
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


@pytest.mark.parametrize(
    ("engine", "asked"),
    [({"quantization": "fp8"}, 30), ({"tensor_parallel_size": 8, "gpu_memory_utilization": 0.8}, 0)],
)
def test_engine_arguments_that_change_the_model(stage: Any, engine: dict[str, Any], asked: int):
    stage(FakeSampler(), backend="vllm")
    stage(again := FakeSampler(), backend="vllm", engine=engine)
    assert len(again.asked) == asked


def test_a_server_tells_which_weights_it_has_where_none_are_here(tmp_path: Path, checkpoint: Path):
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    assert checkpoints.revision(bare, "a") != checkpoints.revision(bare, "b") != checkpoints.revision(bare)
    assert checkpoints.revision(checkpoint, "a") == checkpoints.revision(checkpoint)


def test_the_time_that_answers_took_is_kept(stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(sample.time, "monotonic", lambda: float(next(ticks)))
    assert stage(FakeSampler(fail_after=10)) is None
    stage(FakeSampler())
    known = answer_store.read(epath.Path(tmp_path / "out/samples/.answers/s"), sample.STORED)
    assert known["seconds"].sum() >= 30 and (known["seconds"] > 0).all()


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


def test_prompts_that_cannot_be_asked_are_rejected_with_reason(stage: Any, tmp_path: Path):
    texts = ["hi", "x" * 400, "ok"]
    file = write_jsonl(tmp_path / "long.jsonl", [{"id": f"p{n}", "prompt": text} for n, text in enumerate(texts)])
    table = stage(fake := FakeSampler(), prompts_file=file)
    assert len(fake.asked) == 6
    assert table["finish_reason"].to_list() == ["stop"] * 3 + ["error"] * 3 + ["stop"] * 3
    assert table.filter(prompt_id="p1")["error"].str.starts_with("prompt_too_long: ").all()
    (line,) = map(json.loads, (tmp_path / "out/rejected/sample-s.jsonl").read_text().splitlines())
    assert (line["where"], line["reason"]) == ("p1", "prompt_too_long")
    # With a longer context it is asked, and only it.
    stage(more := FakeSampler(), prompts_file=file, max_model_len=1000)
    assert len(more.asked) == 3


def test_flaws_are_marked(stage: Any):
    def flawed(text: str, output: str) -> list[str]:
        table = stage(FakeSampler(text=text), output=output)
        return [name for name in flaws.FLAWS if table[name].all()]

    assert flawed("  ", "a") == ["empty"]
    assert flawed("I am sure. " * 150 + "{}", "b") == ["degenerate"]
    assert flawed("answer {}", "c") == []


def test_refusals_alone_end_the_run(stage: Any, tmp_path: Path):
    with pytest.raises(UserError, match="sources: s: the first 20 requests failed: refused: no"):
        stage(FakeSampler(error="refused: no"))
    assert not (tmp_path / "out/samples/s.parquet").exists()


def test_an_answer_is_recorded_with_its_parameters(stage: Any, checkpoint: Path):
    row = stage(FakeSampler(), temperature=0.5).row(0, named=True)
    prompt = ChatTokenizer("s", checkpoint, None).encode([{"role": "user", "content": "q0"}])
    expected = {
        "source": "s", "sample_index": 0, "text": f"answer {row['seed']}", "finish_reason": "stop", "error": None,
        "prompt_tokens": len(prompt), "completion_tokens": 1, "model": str(checkpoint), "temperature": 0.5,
        "top_p": 0.95, "repetition_penalty": 1.0, "max_new_tokens": 20, "engine": "fake 1",
        "revision": checkpoints.fingerprint(checkpoint), "dtype": "auto",
        "truncated": False, "empty": False, "degenerate": False,
    }  # fmt: skip
    assert row | expected == row


@pytest.fixture
def several(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that runs the stage on the named sources, each with the sampler that `open_` gives for its name.

    Those whose name begins with `server` have one.
    """
    file = write_jsonl(tmp_path / "p.jsonl", [{"id": f"p{n}", "prompt": f"q{n}"} for n in range(10)])
    served = {"backend": "openai", "server": {"url": "http://localhost/v1"}}

    def run(names: list[str], open_: Callable[[str], FakeSampler]) -> None:
        monkeypatch.setattr(sample, "open_sampler", lambda config, source, *_: open_(source.name))
        config = PipelineConfig.model_validate(
            {
                "output_dir": str(tmp_path / "out"),
                "prompts": [{"path": str(file), "dataset": "d", "domain": "instruction"}],
                "sources": [
                    {"name": name, "model": str(checkpoint)} | (served if name.startswith("server") else {})
                    for name in names
                ],
                "samples_per_prompt": {"instruction": 3},
            }
        )
        prompts.run(config)
        sample.run(config)

    return run


def test_servers_side_by_side_and_engines_one_after_another(several: Any, tmp_path: Path):
    meeting, loaded = threading.Barrier(3), set()

    class Waiting(FakeSampler):
        """Answers when all are there: two servers, and one engine at a time."""

        def __init__(self, name: str):
            super().__init__()
            self._name = name
            assert name.startswith("server") or not loaded
            loaded.update({name} - {"server_1", "server_2"})

        def generate(self, requests: Sequence[Request], done: Container[str]) -> Iterator[Answered]:
            if self._name != "engine_2":
                meeting.wait(60)
            yield from super().generate(requests, done)

        def close(self) -> None:
            loaded.discard(self._name)

    names = ["engine_1", "server_1", "engine_2", "server_2"]
    several(names, Waiting)
    tables = [pl.read_parquet(tmp_path / f"out/samples/{name}.parquet") for name in names]
    assert [len(table) for table in tables] == [30] * 4
    assert pl.concat(tables)["seed"].n_unique() == 120  # Each source has its own.


def test_a_server_that_fails_does_not_stop_the_others(several: Any, tmp_path: Path, capsys: pytest.CaptureFixture):
    def open_(name: str) -> FakeSampler:
        return FakeSampler(error="refused: no" if name == "server_1" else None)

    with pytest.raises(UserError, match="sources: server_1: the first 20 requests failed"):
        several(["server_1", "engine", "server_2"], open_)
    assert "sample server_1 failed: sources: server_1: the first 20" in capsys.readouterr().err
    found = {path.stem for path in (tmp_path / "out/samples").glob("*.parquet")}
    assert found == {"engine", "server_2"}


def test_interrupted_servers_stop(several: Any, tmp_path: Path):
    class Endless(FakeSampler):
        def generate(self, requests: Sequence[Request], done: Container[str]) -> Iterator[Answered]:
            for request in itertools.cycle(requests):
                yield [(request, Answer("again", "stop", 1))]

    with pytest.raises(KeyboardInterrupt):
        several(["server", "engine"], lambda name: Endless() if name == "server" else FakeSampler(fail_after=3))


@pytest.mark.parametrize(
    ("sampler", "source", "message"),
    [
        ("openai", {}, "sources: s needs a server.url"),
        ("vllm", {"server": {"url": "http://localhost/v1"}}, "sources: s has a server, but the backend vllm"),
        ("vllm", {"backend": "transformers", "engine": {"x": 1}}, "s has engine arguments, but the backend transf"),
        ("vllm", {"engine": {"max_model_len": 1}}, "max_model_len is set elsewhere, by max_model_len"),
        ("openai", {"server": {"url": "localhost/v1"}}, "String should match pattern"),
    ],
)
def test_what_does_not_go_together(sampler: str, source: dict[str, Any], message: str):
    values = {
        "output_dir": "out",
        "prompts": [{"path": "p.jsonl", "dataset": "d", "domain": "math"}],
        "sources": [{"name": "s", "model": "org/m", **source}],
        "sampler": {"backend": sampler},
    }
    with pytest.raises(pydantic.ValidationError, match=message):
        PipelineConfig.model_validate(values)
