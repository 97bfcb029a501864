"""Domains in both spellings, mistakes in either, and a domain and a verifier of the user's own from end to end."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import polars as pl
import pytest
import yaml

from data_pipeline.__main__ import main
from data_pipeline.config import PipelineConfig
from data_pipeline.domains import DEFAULTS, todays_key
from data_pipeline.selection.rules import RULES, Margin, Parameters
from fusejax.common import cli
from fusejax.data.records import open_shards
from tests.data_pipeline.helpers import write_config, write_jsonl

ROOT = Path(__file__).parents[2]
# What the recipe's and the quickstart's files said before there was `domains`.
EARLIER = {
    "fusechat3": """
        samples_per_prompt: {instruction: 5, math: 5, code: 8, chinese: 1}
        scorers:
          instruction: {reward: &armorm {model: RLHFlow/ArmoRM-Llama3-8B-v0.1, backend: vllm}}
          math: {reward: *armorm, correctness: math_verify}
          code: {reward: *armorm, correctness: code}
        selection:
          instruction: {sft_fraction: 0.4, min_margin: 0.01, max_margin: 0.1, pair_source: best}
          math: {min_margin: 0.01, max_margin: 0.1, pair_source: best}
          code: {same_source: true, pair_source: best}
          chinese: {source: Qwen2.5-72B-Instruct}
    """,
    "quickstart": """
        samples_per_prompt: {instruction: 5, math: 5, code: 8, chinese: 1}
        scorers:
          instruction: {reward: "quickstart.reward:score"}
          math: {reward: "quickstart.reward:score", correctness: math_verify}
          code: {reward: "quickstart.reward:score", correctness: code}
          chinese: {reward: "quickstart.reward:score"}
        selection:
          chinese: {source: qwen2}
    """,
}


def load(folder: Path, values: dict[str, Any], *overrides: str) -> PipelineConfig:
    """As the command loads it."""
    path = write_config(folder / "data.yaml", values)
    return cli.load_config(PipelineConfig, path, [*overrides], rename=todays_key, named=["rule"])


@pytest.fixture
def plain(tmp_path: Path) -> dict[str, Any]:
    """A config that says nothing of domains."""
    return {
        "output_dir": str(tmp_path / "out"),
        "prompts": [{"path": "m.jsonl", "dataset": "m", "domain": "math"}],
        "sources": [{"name": "s", "model": "s"}],
    }


@pytest.mark.parametrize("name", EARLIER)
def test_earlier_files_mean_the_same(name: str, tmp_path: Path):
    path = ROOT / "configs" / name / "data.yaml"
    today = cli.load_config(PipelineConfig, path, [])
    values = yaml.safe_load(path.read_text())
    assert list(values.pop("domains")) == list(DEFAULTS)
    earlier = load(tmp_path, values | yaml.safe_load(EARLIER[name]))
    assert earlier.domains == today.domains and list(earlier.domains) == list(today.domains)
    # Down to the bytes, since stages ask by them whether their work is done.
    assert earlier.model_dump_json() == today.model_dump_json()
    assert PipelineConfig.model_validate_json(today.model_dump_json(), strict=True).domains == today.domains


def test_without_a_word_there_are_four_domains(plain: dict[str, Any], tmp_path: Path):
    config = load(tmp_path, plain)
    assert config.domains == DEFAULTS
    assert config.sources[0].domains == ("instruction", "math", "code", "chinese")
    changed = load(
        tmp_path, plain | {"scorers": {"math": {"timeout_seconds": 9}, "chinese": {"reward": "a:b"}}}
    ).domains
    assert (changed["math"].verifier, changed["math"].timeout_seconds) == ("math_verify", 9)
    assert (changed["chinese"].reward, changed["chinese"].rule) == ("a:b", DEFAULTS["chinese"].rule)
    assert changed["code"] == DEFAULTS["code"]


def test_named_domains_are_all_there_are(plain: dict[str, Any], tmp_path: Path):
    law = {"samples": 3, "verifier": "json:loads", "rule": {"name": "margin", "max_margin": 1}}
    plain["domains"] = {"math": {"verifier": "math_verify", "rule": "verdict_pairs"}, "law": law}
    config = load(tmp_path, plain)
    assert list(config.domains) == ["math", "law"] and config.sources[0].domains == ("math", "law")
    assert config.domains["math"] == DEFAULTS["math"]
    assert config.domains["law"].rule == Margin(max_margin=1)
    # One more in the earlier words, beside these.
    both = load(tmp_path, plain, "samples_per_prompt.code=2")
    assert list(both.domains) == ["math", "law", "code"]
    assert both.domains["code"] == DEFAULTS["code"].model_copy(update={"samples": 2})


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("samples_per_prompt.math=3", lambda domain: domain.samples == 3),
        ("scorers.math.reward=my.rewards:score", lambda domain: domain.reward == "my.rewards:score"),
        ("scorers.math.correctness=code", lambda domain: domain.verifier == "code"),
        ("scorers.math.memory_mb=100", lambda domain: domain.memory_mb == 100),
        ("selection.math.max_margin=null", lambda domain: domain.rule.max_margin is None),
    ],
)
@pytest.mark.parametrize("spelling", ["none", "earlier", "today"])
def test_overrides_in_the_earlier_words(
    spelling: str, override: str, value: Any, plain: dict[str, Any], tmp_path: Path
):
    words: dict[str, dict[str, Any]] = {
        "none": {},
        "earlier": {
            "samples_per_prompt": {"math": 5}, "scorers": {"math": {"reward": "a:b"}},
            "selection": {"math": {"min_margin": 0.01}},
        },
        "today": {"domains": {"math": {"rule": {"name": "verdict_pairs"}, "verifier": "math_verify"}}},
    }  # fmt: skip
    assert value(load(tmp_path, plain | words[spelling], override).domains["math"])


@pytest.mark.parametrize("rule", ["margin", {"name": "margin"}])
def test_overrides_below_a_rule_that_is_written_as_its_name(rule: Any, plain: dict[str, Any], tmp_path: Path):
    config = plain | {"domains": {"math": {"rule": rule}}}
    for key in ("domains.math.rule.min_margin", "selection.math.min_margin"):
        assert load(tmp_path, config, f"{key}=0.02").domains["math"].rule == Margin(min_margin=0.02)
    # The earlier value is the name of a rule, and of nothing else.
    with pytest.raises(cli.UserError, match=r"'reward' has no keys below it"):
        load(tmp_path, plain | {"domains": {"math": {"rule": rule, "reward": "a:b"}}}, "domains.math.reward.model=m")


MATH = {"domains": {"math": {"rule": {"name": "verdict_pairs"}}}}


@pytest.mark.parametrize(
    ("changes", "override", "message"),
    [
        ({}, "prompts.0.domain=x", "override 'prompts.0.domain=x': 'prompts' has no keys below it"),
        ({}, "prompts=[{path: p, dataset: d, domain: maths}]", "prompts.0.domain: 'maths' is none of the domains ins"),
        ({}, "sources=[{name: s, model: s, domains: [law]}]", "sources.0.domains: 'law' is none of the domains ins"),
        ({}, "samples_per_prompt.maht=3", "samples_per_prompt.maht: unknown key; did you mean 'math'?"),
        ({}, "samples_per_prompt.math=0", "samples_per_prompt.math: input should be greater than 0"),
        ({}, "selection.math.min_margn=0", "selection.math.min_margn: unknown key; did you mean 'min_margin'?"),
        ({}, "selection.math.min_margin=1", "selection.math: min_margin 1.0 exceeds max_margin 0.1"),
        ({}, "selection.chinese.source=t", "selection.chinese.source: 't' is none of the sources with the domain chin"),
        ({}, "scorers.math.correctness=sympy", "scorers.math.correctness: input should be 'math_verify' or 'code'"),
        (MATH, "selection={math: {min_margin: 0}}", "selection.math: math is an entry of domains; all of it belongs"),
        (MATH, "scorers={math: {reward: null}}", "scorers.math: math is an entry of domains; all of it belongs there"),
        (MATH, "samples_per_prompt.math=0", "domains.math.samples: input should be greater than 0"),
        (MATH, "domains.math.sampels=3", "domains.math.sampels: unknown key; did you mean 'samples'?"),
        (MATH, "domains.math.rule.min_margn=0", "domains.math.rule.min_margn: unknown key; did you mean 'min_margin'?"),
        (MATH, "domains.math.rule.sft_fraction=0", "domains.math.rule.sft_fraction: unknown key"),
        (MATH, "domains.math.rule.min_margin=-1", "domains.math.rule.min_margin: expected a number of at least 0"),
        (MATH, "domains.math.rule.max_margin=.inf", "domains.math.rule.max_margin: expected a number of at lea"),
        (MATH, "domains.math.rule.max_margin={quantile: 2}", "domains.math.rule.max_margin.quantile: input should be "),
        (
            MATH,
            "domains.math.rule={name: margin, min_margin: {quantile: 0.5}, max_margin: {quantile: 0.4}}",
            "domains.math.rule: min_margin quantile 0.5 exceeds max_margin quantile 0.4",
        ),
        (MATH, "domains.math.rule={min_margin: 0}", "domains.math.rule: expected the name of a rule (margin, verdict_"),
        (MATH, "domains.math.rule=margins", "domains.math.rule: 'margins' is none of margin, verdict_pairs, "),
        (MATH, "domains.math.rule=3", "domains.math.rule: expected the name of a rule (margin, verdict_pairs"),
        (MATH, "domains.math.verifier=sympy", "domains.math.verifier: 'sympy' is none of math_verify, code"),
        (MATH, "domains.math.verifier=3", "domains.math.verifier: input should be a valid string"),
        (MATH, "domains.law={samples: 3}", "domains.law.rule: field required"),
        (MATH, "domains.total={rule: margin}", "total is what reports call the sum of the domains; take another name"),
        (MATH, "domains.a b={rule: margin}", "string should match pattern"),
        (MATH, "domains.law={rule: {name: one_source, source: t}}", "domains.law.rule.source: 't' is none of the sour"),
        (MATH, "domains.law={rule: {name: wrpo, target: t}}", "domains.law.rule.target: 't' is none of the sources wi"),
        (MATH, "domains.law={rule: {name: wrpo, target: s}}", "domains.law.rule.target: 's' is the domain's only sou"),
        (
            {**MATH, "sources": [{"name": "s", "model": "m"}, {"name": "t", "model": "n"}]},
            "domains.law={rule: {name: wrpo, target: t}}",
            "sources: t: it is the target of domains.law.rule, and would answer domains.math as a source: give it "
            "`domains: [law]`",
        ),
        (MATH, "domains.law={rule: {name: wrpo, sft_fraction: 2}}", "domains.law.rule.sft_fraction: input should be"),
        (MATH, "domains.law={rule: {name: fuserl, temperature: 0}}", "domains.law.rule.temperature: input should be g"),
        (MATH, "domains.law={rule: {name: fuserl, top: 0}}", "domains.law.rule.top: input should be greater than 0"),
    ],
)  # fmt: skip
def test_mistakes(changes: dict[str, Any], override: str, message: str, plain: dict[str, Any], tmp_path: Path):
    with pytest.raises(cli.UserError, match=rf"(: |: .*\[key\]: ){re.escape(message)}|^{re.escape(message)}") as raised:
        load(tmp_path, plain | changes, override)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (
            {"rule": "margin"},
            "domains.math.reward: selecting math answers needs a reward: a model, or module:",
        ),
        (
            {"rule": "verdict_pairs", "reward": {"model": "org/armorm"}},
            "domains.math.verifier: the rule verdict_pairs needs verdicts: name a verifier, or module:attribute",
        ),
        ({"rule": "one_source", "verifier": "math:pi"}, "domains.math.verifier: math:pi cannot be called"),
        ({"rule": "one_source", "verifier": "math:tau2"}, "domains.math.verifier: module 'math' has no 'tau2'"),
        ({"rule": "one_source", "reward": "nowhere:f"}, "domains.math.reward: cannot import 'nowhere'"),
    ],
)
def test_what_a_rule_needs_is_missed_before_the_work(
    domain: dict[str, Any], message: str, plain: dict[str, Any], tmp_path: Path
):
    config = write_config(tmp_path / "data.yaml", plain | {"domains": {"math": domain}})
    with pytest.raises(cli.UserError, match=f"^{re.escape(message)}"):
        main(["run", "--config", str(config)])
    assert not (tmp_path / "out").exists()


def cites(prompt: dict[str, Any], text: str) -> str | None:
    """A verifier of the user's: the answer must cite the section that the prompt's `answer` names."""
    if text == "strike":
        raise RuntimeError("no clerk")
    if "section" not in text:
        return None
    return "correct" if f"section {prompt['answer']}" in text else "wrong"


class Cites:
    """The same as a class."""

    def check(self, prompt: dict[str, Any], text: str) -> str | None:
        return cites(prompt, text)


def length(prompt: dict[str, Any], text: str) -> tuple[float, None]:
    return len(text) / 1000, None


ANSWERS = [
    ["I would say section 1, of course.", "By section 9.", "I do not know.", "strike"],
    ["See section 2.", "section 2", "It is section 20, or section 2."],
    ["section 7"],
]


@pytest.fixture
def law(tmp_path: Path) -> dict[str, Any]:
    """A config of the domains law and math, whose answers come with a data set."""
    questions = [f"Which section, question {number}?" for number in range(len(ANSWERS))]
    prompts = [{"id": f"l{n}", "prompt": text, "answer": str(n + 1)} for n, text in enumerate(questions)]
    rows = [
        {"q": text, "a": answer} for text, answers in zip(questions, ANSWERS, strict=True) for answer in answers
    ] + [{"q": "What is 3 + 4?", "a": rf"\boxed{{{value}}}"} for value in ("7", "34")]
    files = {
        "law": write_jsonl(tmp_path / "law.jsonl", prompts),
        "math": write_jsonl(tmp_path / "math.jsonl", [{"id": "m0", "prompt": "What is 3 + 4?", "answer": "7"}]),
    }
    reward = "tests.data_pipeline.test_domains:length"
    return {
        "output_dir": str(tmp_path / "out"),
        "prompts": [{"path": str(file), "dataset": f"{d}-set", "domain": d} for d, file in files.items()],
        "given": [
            {"name": "clerk", "model": "org/clerk", "prompt": "q", "answer": "a",
             "path": str(write_jsonl(tmp_path / "given.jsonl", rows))}
        ],
        "domains": {
            "law": {
                "samples": 3,
                "reward": reward,
                "verifier": "tests.data_pipeline.test_domains:cites",
                "rule": "verdict_both",
            },
            "math": {
                "reward": reward,
                "verifier": "math_verify",
                "rule": {"name": "verdict_pairs", "min_margin": None, "max_margin": None},
            },
        },
        "scorers": {"workers": 1},
        "write": {"num_shards": 1, "eval_fraction": 0},
    }  # fmt: skip


def test_a_fifth_domain_with_a_verifier_of_ones_own(law: dict[str, Any], tmp_path: Path):
    main(["run", "--config", str(write_config(tmp_path / "data.yaml", law))])
    out = tmp_path / "out"
    scores = pl.read_parquet(out / "scores/clerk.parquet").sort("prompt_id", "sample_index")
    judged = {row["text"]: (row["verdict"], row["detail"]) for row in scores.iter_rows(named=True)}
    assert judged == {
        "I would say section 1, of course.": ("correct", None),
        "By section 9.": ("wrong", None),
        "I do not know.": (None, None),
        "strike": ("unknown", "verifier_failed: RuntimeError: no clerk"),
        "See section 2.": ("correct", None),
        "section 2": ("correct", None),
        "It is section 20, or section 2.": ("correct", None),
        "section 7": ("wrong", None),
        r"\boxed{7}": ("correct", "same_text"),
        r"\boxed{34}": ("wrong", "other_number"),
    }
    # The rule verdict_both: the best correct answer, and a pair where there is a wrong one.
    sft = {record.id: record for record in open_shards(f"{out}/sft/train")}
    assert {name: record.messages[-1]["content"] for name, record in sft.items()} == {
        "l0": "I would say section 1, of course.",
        "l1": "It is section 20, or section 2.",
    }
    pairs = [
        (record.id, record.domain, record.chosen[0]["content"], record.rejected[0]["content"])
        for record in open_shards(f"{out}/dpo/train")
    ]
    assert sorted(pairs) == [
        ("l0", "law", "I would say section 1, of course.", "By section 9."),
        ("m0", "math", r"\boxed{7}", r"\boxed{34}"),
    ]
    discarded = pl.read_parquet(out / "selection/discarded.parquet")
    assert discarded.select("prompt_id", "reason").rows() == [("l2", "no_correct_answer")]
    manifest = json.loads((out / "sft/manifest.json").read_text())
    assert manifest["config"]["domains"]["law"]["rule"]["name"] == "verdict_both"
    card = (out / "data_card.md").read_text()
    assert "| law | tests.data_pipeline.test_domains:length | tests.data_pipeline.test_domains:cites |" in card
    assert "- law: `verdict_both` (min_margin 0.0, max_margin none, pair_source best, same_source True)" in card
    assert "Answers a prompt and source: law 3, math 5." in card
    assert card.index("| law-set | law |") < card.index("| math-set | math |")  # In the order of the config.
    page = (out / "report.html").read_text()
    assert page.index("<h3>law</h3>") < page.index("<h3>math</h3>")
    law["domains"]["law"]["verifier"] = "tests.data_pipeline.test_domains:Cites"
    main(["score", "--config", str(write_config(tmp_path / "data.yaml", law))])
    columns = ["text", "reward", "verdict", "detail"]
    again = pl.read_parquet(out / "scores/clerk.parquet").sort("prompt_id", "sample_index")
    assert again.select(columns).equals(scores.select(columns))


@pytest.mark.parametrize("stage", ["score", "select"])
def test_prompts_of_a_domain_that_the_config_lacks(stage: str, law: dict[str, Any], tmp_path: Path):
    config = write_config(tmp_path / "data.yaml", law)
    for before in ("prompts", "sample", "score"):
        main([before, "--config", str(config)])
    del law["domains"]["law"], law["prompts"][0]
    write_config(config, law)
    with pytest.raises(cli.UserError, match=r"prompts\.parquet: unknown domain 'law'; the domains are math$"):
        main([stage, "--config", str(config)])


def test_the_spelling_alone_asks_for_nothing_again(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
):
    earlier = write_config(tmp_path / "earlier.yaml", values)
    main(["run", "--config", str(earlier)])
    reward, scorers = values["scorers"]["math"]["reward"], values.pop("scorers")
    samples = values.pop("samples_per_prompt")
    rules = dict(zip(DEFAULTS, RULES, strict=False))  # there may be more
    values["domains"] = {name: {"samples": samples[name], "reward": reward, "rule": rules[name]} for name in DEFAULTS}
    values["domains"]["math"]["verifier"] = "math_verify"
    values["domains"]["code"] |= {"verifier": "code", "timeout_seconds": 2}
    values["scorers"] = {"workers": scorers["workers"]}
    capsys.readouterr()
    main(["run", "--config", str(write_config(tmp_path / "today.yaml", values))])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and all("up to date" in line for line in lines), lines


def test_every_rule_can_be_named():
    assert {rule.parameters for rule in RULES.values()} == set(get_args(Parameters))
    assert {name: rule.parameters().name for name, rule in RULES.items()} == {name: name for name in RULES}
