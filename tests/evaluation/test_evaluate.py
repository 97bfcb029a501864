"""The evaluation from prompts to results, judged by the real data pipeline."""

import json
import math
import shutil
import subprocess
import sys

import polars as pl
import pytest
import torch
import yaml
from etils import epath
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusejax.common.cli import UserError
from fusejax.evaluation.answers import answer, read_prompts
from fusejax.evaluation.results import standard_error
from fusejax.models.decoder import generate
from fusejax.training.start import StartingModel


def score(prompt: dict, text: str) -> tuple[float, str]:
    """The reward that the tests' data pipeline uses: an answer is right if it is what the prompt demands."""
    return 0.1, check(prompt, text)


def check(prompt: dict, text: str) -> str:
    """The same as a verifier, of a domain of the tests' own."""
    return "correct" if text == prompt["answer"] else "wrong"


@pytest.fixture(scope="module")
def greedy(world):
    """What transformers' greedy generation answers to three prompts."""
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    model = AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32)
    answers = {}
    for text in ("what is 1 plus 2", "what is 30 plus 4?", "user"):
        tokens = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        new = model.generate(**tokens, max_new_tokens=12, do_sample=False, pad_token_id=0)
        answers[text] = tokenizer.decode(new[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def configure(world, folder, prompts):
    pl.DataFrame(prompts).write_parquet(folder / "prompts.parquet")
    pipeline = {
        "output_dir": "replaced by the evaluation",
        "prompts": [{"path": str(folder / "prompts.parquet"), "dataset": "test", "domain": "instruction"}],
        "sources": [{"name": "any", "model": "any"}],
        "domains": {
            "instruction": {"reward": "tests.evaluation.test_evaluate:score", "rule": "margin"},
            "law": {"verifier": "tests.evaluation.test_evaluate:check", "rule": "one_source"},
        },
    }
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))
    config = {
        "models": {"base": str(world / "model")},
        "prompts": str(folder / "prompts.parquet"),
        "scoring": str(folder / "pipeline.yaml"),
        "output_dir": str(folder / "out"),
        "max_new_tokens": 12,
        "dtype": "float32",
    }
    (folder / "evaluate.yaml").write_text(yaml.safe_dump(config))
    return [sys.executable, "-m", "fusejax.evaluate", "--config", str(folder / "evaluate.yaml")]


def prompt(i, text, domain, answer):
    messages = [{"role": "user", "content": text}]
    return {"id": str(i), "dataset": "d", "domain": domain, "messages": messages, "answer": answer, "tests": None}


def test_accuracy_of_the_answers_that_transformers_gives(world, greedy, tmp_path):
    """Two of the three gold answers are what the model says, one is not."""
    (one, said_one), (two, said_two), (three, said_three) = greedy.items()
    prompts = [
        prompt(0, one, "instruction", said_one),
        prompt(1, two, "instruction", said_two + "!"),
        prompt(2, three, "law", said_three),
    ]
    result = subprocess.run(configure(world, tmp_path, prompts), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results == {"base": {"instruction": 0.5, "law": 1.0, "average": 0.75}}
    assert "75.0 ± " in result.stdout


def test_mistakes_end_in_one_line(world, tmp_path):
    command = configure(world, tmp_path, [prompt(0, "user", "instruction", "x")])
    for override, message in (
        ("prompts=/nowhere.parquet", "prompts /nowhere.parquet: no such file"),
        ("models.sft=/nowhere/model", "model /nowhere/model"),
        ("scoring=/nowhere.yaml", "scoring /nowhere.yaml: no such file"),
        ("batchsize=3", "did you mean 'batch_size'?"),
    ):
        result = subprocess.run([*command, override], capture_output=True, text=True)
        assert result.returncode == 2, override
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert not (tmp_path / "out").exists()  # found before the first answer


def test_an_id_that_occurs_twice(tmp_path):
    twice = [prompt(0, "user", "math", "x"), prompt(0, "what", "math", "x")]
    pl.DataFrame(twice).write_parquet(tmp_path / "prompts.parquet")
    with pytest.raises(UserError, match=r"prompts\.parquet: the id '0' occurs more than once"):
        read_prompts(str(tmp_path / "prompts.parquet"))


@pytest.fixture
def model(world, tmp_path):
    shutil.copytree(world / "model", tmp_path / "model")
    return tmp_path / "model"


def answers(model, prompts):
    options = {"max_new_tokens": 2, "batch_size": 2, "dtype": "float32", "folder": epath.Path(model.parent / "answers")}
    return answer(StartingModel(str(model)), "base", pl.DataFrame(prompts), **options)


def test_a_prompt_that_the_template_refuses(model):
    template = model / "chat_template.jinja"
    refusal = "{% if messages[0]['content'] == 'no' %}{{ raise_exception('never') }}{% endif %}"
    template.write_text(refusal + template.read_text())
    frame = answers(model, [prompt(i, text, "math", "x") for i, text in enumerate(("user", "no", "what"))])
    assert frame["prompt_id"].to_list() == ["0", "1", "2"]
    assert frame["finish_reason"].to_list()[1] == "error"
    assert set(frame["finish_reason"].to_list()[::2]) <= {"stop", "length"}
    assert (frame["text"][1], frame["prompt_tokens"][1], frame["completion_tokens"][1]) == ("", 0, 0)
    assert frame["prompt_tokens"][0] > 0


def test_nothing_is_answered_twice(model, monkeypatch):
    """Killed after its first batch, it goes on with the second; other weights answer anew."""
    prompts = [prompt(i, text, "math", "x") for i, text in enumerate(("user", "what is 1 plus 2", "what", "user"))]
    real, made = generate.generate_batch, []

    def generate_batch(decoder, texts, **options):
        made.append(len(texts))
        if len(made) == 2:
            raise KeyboardInterrupt
        return real(decoder, texts, **options)

    monkeypatch.setattr(generate, "generate_batch", generate_batch)
    with pytest.raises(KeyboardInterrupt):
        answers(model, prompts)
    resumed = answers(model, prompts)
    assert made == [2, 2, 2]
    assert answers(model, prompts).equals(resumed) and len(made) == 3

    monkeypatch.setattr(generate, "generate_batch", real)
    shutil.rmtree(model.parent / "answers")
    assert answers(model, prompts).equals(resumed)
    file = next(model.glob("*.safetensors"))
    save_file({name: weight + 0.5 for name, weight in load_file(file).items()}, file, {"format": "pt"})
    monkeypatch.setattr(generate, "generate_batch", lambda *_, **__: made.append("anew") or [[7], [7]])
    answers(model, prompts)
    assert made[3:] == ["anew", "anew"]


@pytest.mark.parametrize("text", ["{", '{"eos_token_id": "<|im_end|>"}', "[]"])
def test_a_broken_generation_config(model, text):
    (model / "generation_config.json").write_text(text)
    with pytest.raises(UserError, match=r"generation_config\.json"):
        answers(model, [prompt(0, "user", "math", "x")])


def test_standard_error_of_the_average():
    frame = pl.DataFrame({"domain": ["a"] * 4 + ["b"] * 4, "verdict": ["correct", "wrong"] * 2 + ["correct"] * 4})
    assert standard_error(frame) == pytest.approx(math.sqrt(0.25 / 4) / 2)
