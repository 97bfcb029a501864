"""What a domain is: how many answers each source gives to its prompts, what judges them, which rule selects from them.

    domains:
      math: {samples: 5, reward: {model: RLHFlow/ArmoRM-Llama3-8B-v0.1}, verifier: math_verify, rule: verdict_pairs}
      law: {samples: 4, reward: "my.rewards:score", verifier: "my.verifiers:check", rule: {name: margin, max_margin: 1}}

The user chooses the name; prompts and sources name the domains that they belong to. Older configurations, which spread
four domains over the sections `samples_per_prompt`, `scorers` and `selection`, are read as well and mean the same.
"""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, PositiveFloat, PositiveInt

from data_pipeline.selection.rules import RULES, Margin, OneSource, Parameters, VerdictBoth, VerdictPairs
from fusejax.common.cli import ConfigModel

VERIFIERS = {"math_verify": "answer", "code": "tests"}
"""Name of a built-in verifier -> the column of a prompt that it compares answers with."""
RewardEngineArgument = Literal["enforce_eager", "gpu_memory_utilization", "max_num_seqs", "tensor_parallel_size"]


def on_disk(model: str) -> str:
    """Returns the model's name unchanged; a pydantic validator.

    Raises:
      ValueError: it is neither a directory on disk nor a Hub id.
    """
    if "://" in model:
        raise ValueError(
            f"{model}: samplers read checkpoints from disk or the Hub; copy it first, "
            f"as with `gcloud storage cp --recursive {model} .`"
        )
    return model


class RewardModelConfig(ConfigModel):
    """A reward model: ArmoRM, or any decoder that classifies sequences by one label (`LlamaForSequenceClassification`,
    `Qwen2...`, `Gemma2...`), whose logit is the reward."""

    model: Annotated[str, pydantic.AfterValidator(on_disk)]
    """Directory or Hub id of a checkpoint, such as RLHFlow/ArmoRM-Llama3-8B-v0.1 or
    Skywork/Skywork-Reward-V2-Llama-3.1-8B; its `config.json` says which kind it is. Its tokenizer needs a chat
    template."""
    revision: str | None = None
    """Branch, tag or commit of a Hub id."""
    backend: Literal["transformers", "vllm"] = "transformers"
    """What runs the model."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the decoder; what follows it computes in float32."""
    batch_tokens: PositiveInt = 16384
    """Tokens per batch, padding included. A longer conversation is a batch of its own in transformers, and several in
    vLLM."""
    engine: dict[RewardEngineArgument, Any] = Field(default_factory=dict)
    """For the backend vllm: where and how fast it computes. No score depends on it, so changing it keeps all scores."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "RewardModelConfig":
        if self.engine and self.backend != "vllm":
            raise ValueError(f"engine arguments are for the backend vllm, not {self.backend}")
        return self

    def __str__(self) -> str:
        return f"{self.model} ({self.backend}, {self.dtype})"


def _reward(value: Any) -> Any:
    """A section, validated as a reward model here so that an error names the key in which the mistake is."""
    if isinstance(value, dict):
        return RewardModelConfig.model_validate(value, strict=True)
    if not isinstance(value, str | RewardModelConfig | None):
        raise ValueError("expected module:attribute, or a section with the key 'model'")
    return value


def _verifier(value: str | None) -> str | None:
    if value is not None and value not in VERIFIERS and ":" not in value:
        raise ValueError(f"{value!r} is none of {', '.join(VERIFIERS)}, nor module:attribute")
    return value


def _rule(value: Any) -> Any:
    """A rule's name, or a section with its name and parameters, read as the parameters of that rule."""
    if isinstance(value, Parameters):
        return value
    section = {"name": value} if isinstance(value, str) else value
    if not isinstance(section, dict) or "name" not in section:
        raise ValueError(f"expected the name of a rule ({', '.join(RULES)}), or a section with the key 'name'")
    if section["name"] not in RULES:
        raise ValueError(f"{section['name']!r} is none of {', '.join(RULES)}")
    return RULES[section["name"]].parameters.model_validate(section, strict=True)


Reward = Annotated[str | RewardModelConfig | None, pydantic.BeforeValidator(_reward)]


class VerifierLimits(ConfigModel):
    """Limits of a built-in verifier."""

    timeout_seconds: PositiveFloat = 5.0
    """math_verify: wall time; code: CPU time of all tests of an answer."""
    memory_mb: PositiveInt = 1024
    """Address space. math_verify: beyond what a worker starts with; code: of a program with its tests."""


class DomainConfig(VerifierLimits):
    samples: PositiveInt = 5
    """Answers that each source gives to a prompt."""
    reward: Reward = None
    """A reward model; or `module:attribute` of a function `score(prompt, text) -> (reward, verdict)`, or of a class
    with that method."""
    verifier: Annotated[str | None, pydantic.AfterValidator(_verifier)] = None
    """Gives the verdict: `math_verify` compares with the prompt's `answer`, `code` runs its `tests`; or
    `module:attribute` of a function `check(prompt, text) -> verdict`, or of a class with that method. Default: the
    verdict is the reward function's."""
    rule: Annotated[Parameters, pydantic.BeforeValidator(_rule)]
    """Name of a rule, or its name and parameters: which answers are selected; see `selection/rules.py`."""


def _name(value: str) -> str:
    if value in ("total", "average"):
        raise ValueError(f"{value} is what reports call the sum of the domains; take another name")
    return value


DomainName = Annotated[str, Field(pattern=r"^[^\W\d][\w-]*$"), pydantic.AfterValidator(_name)]
"""Letters, digits, `_` and `-`."""
DEFAULTS = {
    "instruction": DomainConfig(samples=5, rule=Margin()),
    "math": DomainConfig(samples=5, verifier="math_verify", rule=VerdictPairs()),
    "code": DomainConfig(samples=8, verifier="code", rule=VerdictBoth()),
    "chinese": DomainConfig(samples=1, rule=OneSource()),
}
"""The domains of a configuration without `domains`, whose earlier sections, the classes below, change them."""


class SamplesPerPrompt(ConfigModel):
    """The earlier form of `domains.NAME.samples`."""

    instruction: PositiveInt | None = None
    """Now `domains.instruction.samples`."""
    math: PositiveInt | None = None
    """Now `domains.math.samples`."""
    code: PositiveInt | None = None
    """Now `domains.code.samples`."""
    chinese: PositiveInt | None = None
    """Now `domains.chinese.samples`."""


class ScorerConfig(VerifierLimits):
    """The earlier form of keys of `domains.NAME`."""

    reward: Reward = None
    """Now `domains.NAME.reward`."""
    correctness: Literal["math_verify", "code"] | None = None
    """Now called `verifier`."""


class MathScorerConfig(ScorerConfig):
    correctness: Literal["math_verify", "code"] = "math_verify"
    """Now `domains.math.verifier`."""


class CodeScorerConfig(ScorerConfig):
    correctness: Literal["math_verify", "code"] = "code"
    """Now `domains.code.verifier`."""


class ScorersConfig(ConfigModel):
    workers: PositiveInt | None = None
    """Processes that verify. Default: one per core."""
    allow_unsafe: bool = False
    """Run programs even where no sandbox works: only on a machine with nothing of value."""
    instruction: ScorerConfig | None = Field(None, exclude=True)
    """Now `domains.instruction`."""
    math: MathScorerConfig | None = Field(None, exclude=True)
    """Now `domains.math`."""
    code: CodeScorerConfig | None = Field(None, exclude=True)
    """Now `domains.code`."""
    chinese: ScorerConfig | None = Field(None, exclude=True)
    """Now `domains.chinese`."""


class SelectionConfig(ConfigModel):
    """The earlier form of `domains.NAME.rule`."""

    instruction: Margin | None = None
    """Now `domains.instruction.rule`."""
    math: VerdictPairs | None = None
    """Now `domains.math.rule`."""
    code: VerdictBoth | None = None
    """Now `domains.code.rule`."""
    chinese: OneSource | None = None
    """Now `domains.chinese.rule`."""


SECTIONS = {
    "samples": "samples_per_prompt.{}",
    "reward": "scorers.{}.reward",
    "verifier": "scorers.{}.correctness",
    "timeout_seconds": "scorers.{}.timeout_seconds",
    "memory_mb": "scorers.{}.memory_mb",
    "rule": "selection.{}",
}
"""Key of a domain -> the key's name in the earlier sections."""


def resolve(
    written: dict[str, DomainConfig],
    samples: SamplesPerPrompt | None,
    scorers: ScorersConfig,
    selection: SelectionConfig | None,
) -> dict[str, DomainConfig]:
    """All domains: those of `domains`, then those of the earlier sections; if nothing names any, `DEFAULTS`.

    Raises:
      ValueError: a domain is described in both ways.
    """
    domains = dict(written)
    for name, default in DEFAULTS.items():
        count, scorer, rule = (getattr(section, name, None) for section in (samples, scorers, selection))
        found = {"samples_per_prompt": count, "scorers": scorer, "selection": rule}
        present = [section for section, value in found.items() if value is not None]
        if name in written and present:
            raise ValueError(f"{present[0]}.{name}: {name} is an entry of domains; all of it belongs there")
        if name in written or (written and not present):
            continue
        changes: dict[str, Any] = {}
        if count is not None:
            changes["samples"] = count
        if rule is not None:
            changes["rule"] = rule
        if scorer is not None:
            changes |= {key: getattr(scorer, key) for key in ("reward", "timeout_seconds", "memory_mb")}
            changes["verifier"] = scorer.correctness
        domains[name] = default.model_copy(update=changes)
    return domains


def todays_key(values: dict[str, Any], key: str) -> str:
    """An override's key, translated for a file that has `domains`: `selection.math.max_margin` becomes
    `domains.math.rule.max_margin`. Other keys, and those of domains that the file describes in the earlier sections,
    stay as they are.

    >>> todays_key({"domains": {"math": {}}}, "selection.math.max_margin")
    'domains.math.rule.max_margin'
    >>> todays_key({"scorers": {"math": {}}}, "selection.math.max_margin")
    'selection.math.max_margin'
    """
    parts = key.split(".")
    domains = values.get("domains")
    if len(parts) < 2 or not isinstance(domains, dict) or parts[1] not in domains:
        return key
    for ours, theirs in SECTIONS.items():
        earlier = theirs.format(parts[1])
        if key == earlier or key.startswith(f"{earlier}."):
            return f"domains.{parts[1]}.{ours}{key.removeprefix(earlier)}"
    return key
