"""The whole of a data set's making as typed, validated values."""

from typing import Annotated, Any, Literal, get_args

import pydantic
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from data_pipeline.prompts.adapters import ADAPTERS
from fusejax.common.cli import ConfigModel, Location

Domain = Literal["instruction", "math", "code", "chinese"]
DOMAINS: tuple[Domain, ...] = get_args(Domain)
PairSource = Literal["best", "random", "widest"]
Correctness = Literal["math_verify", "code"]
Backend = Literal["transformers", "vllm", "openai"]
RewardEngineArgument = Literal["enforce_eager", "gpu_memory_utilization", "max_num_seqs", "tensor_parallel_size"]


class ColumnsConfig(ConfigModel):
    """Our column -> the column of the file. Unset ones are looked for under our own name."""

    id: str | None = None
    messages: str | None = None
    """A list of `{role, content}`, ending in a user turn."""
    prompt: str | None = None
    """Where there are no messages: the text of one user turn."""
    input: str | None = None
    """What the instruction in `prompt` is about, in Alpaca-like sets: follows it after a blank line."""
    answer: str | None = None
    tests: str | None = None


class RowsConfig(ConfigModel):
    """Where rows come from."""

    path: Location
    """A file (.jsonl, .jsonl.gz, .parquet), or the Hub id of a data set or a folder with its files."""
    subset: str | None = None
    """Configuration of a Hub data set that has several."""
    split: str = "train"
    """Split of a Hub data set."""
    revision: str | None = None
    """Commit, tag or branch of a Hub data set."""


class PromptsConfig(RowsConfig):
    dataset: str
    """The data set's name in records and reports."""
    domain: Domain
    limit: PositiveInt | None = None
    """Draw so many of the valid prompts, by the seed, before they are asked; selection drops some of them later."""
    adapter: str | None = None
    """Hub id of the data set whose columns and filters these rows have. Default: `path`, if it is a known Hub id and
    no columns are named."""
    columns: ColumnsConfig = ColumnsConfig()

    @property
    def adapter_name(self) -> str | None:
        known = self.path in ADAPTERS and self.columns == ColumnsConfig()
        return self.adapter or (self.path if known else None)

    @pydantic.model_validator(mode="after")
    def _one_way_to_read(self) -> "PromptsConfig":
        if self.adapter is not None and self.adapter not in ADAPTERS:
            raise ValueError(f"adapter {self.adapter!r} is none of {', '.join(ADAPTERS)}")
        if self.adapter is not None and self.columns != ColumnsConfig():
            raise ValueError("an adapter knows the columns: name it or them")
        return self


class EvaluationSetConfig(RowsConfig):
    name: str = Field(min_length=1)
    """Names the set in reasons and reports."""
    split: str = "test"
    columns: list[str] = Field(min_length=1)
    """Columns with the texts, or lists of texts, that no prompt may hold."""


class OverlapConfig(ConfigModel):
    """Prompts left out because they hold what is elsewhere already."""

    near_duplicates: float | None = Field(None, gt=0, le=1)
    """Jaccard similarity of the runs of five words at which the later of two prompts is left out. Default: only equal
    prompts are, since short prompts made from one template are no mistake."""
    evaluation_sets: tuple[EvaluationSetConfig, ...] = ()
    """A prompt that shares `ngram` words in a row with a text of these, or is one of the shorter ones, is left out."""
    ngram: PositiveInt = 13

    @pydantic.model_validator(mode="after")
    def _distinct_names(self) -> "OverlapConfig":
        names = [entry.name for entry in self.evaluation_sets]
        if len(set(names)) < len(names):
            raise ValueError(f"evaluation_sets: a name occurs twice in {', '.join(names)}")
        return self


def on_disk(model: str) -> str:
    """The model as it is, for the validation of a source.

    Raises:
      ValueError: it is elsewhere than on disk or the Hub.
    """
    if "://" in model:
        raise ValueError(
            f"{model}: samplers read checkpoints from disk or the Hub; copy it first, "
            f"as with `gcloud storage cp --recursive {model} .`"
        )
    return model


class ServerConfig(ConfigModel):
    url: str = Field(pattern=r"^https?://")
    """Up to and with `/v1`."""
    served_as: str | None = None
    """The model's name there. Default: the source's `model`."""
    concurrency: PositiveInt = 128
    """Requests under way at a time."""
    patience_seconds: PositiveFloat = 600.0
    """How long a request is tried again before the run ends."""
    timeout_seconds: PositiveFloat = 3600.0
    """How long a server may be silent before the request counts as lost."""
    api_key_variable: str | None = None
    """The environment variable that holds the server's key."""


class CostConfig(ConfigModel):
    """What `sample --dry-run` counts with, until there are answers to measure it by."""

    gpus: PositiveInt | None = None
    """That the source takes. Default: of vLLM in this process the product of its parallel sizes; else 1."""
    tokens_per_second: PositiveFloat | None = None
    """Of answers, on these GPUs together. Default: that of the answers so far."""
    answer_tokens: PositiveInt | None = None
    """Of an answer. Default: the mean of the answers so far; before there are any, the most there can be."""


_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class SourceConfig(ConfigModel):
    name: str = Field(pattern=_NAME)
    """Names the files and the records' `source_model`."""
    model: Annotated[str, pydantic.AfterValidator(on_disk)]
    """Directory or Hub id of a Hugging Face checkpoint with a chat template. Of one that a server holds, the tokenizer
    and `config.json` are enough."""
    revision: str | None = None
    """Branch, tag or commit of a Hub id."""
    temperature: NonNegativeFloat = 0.8
    """0 is greedy."""
    top_p: float = Field(0.95, gt=0, le=1)
    repetition_penalty: PositiveFloat = 1.0
    domains: tuple[Domain, ...] = DOMAINS
    backend: Backend | None = None
    """Default: `sampler.backend`."""
    max_model_len: PositiveInt | None = None
    """Tokens of prompt and answer together. Default: `max_position_embeddings` of the model."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Of the backend vllm: further engine arguments, such as `tensor_parallel_size`."""
    server: ServerConfig | None = None
    """Of the backend openai: where the model is served."""
    cost: CostConfig = CostConfig()

    @pydantic.field_validator("engine")
    @classmethod
    def _ours(cls, engine: dict[str, Any]) -> dict[str, Any]:
        elsewhere = {"model": "model", "tokenizer": "model", "revision": "revision", "max_model_len": "max_model_len"}
        for key, place in (elsewhere | {"dtype": "sampler.dtype", "seed": "seed"}).items():
            if key in engine:
                raise ValueError(f"{key} is set elsewhere, by {place}")
        return engine


class GivenConfig(RowsConfig):
    """Answers that come with a data set: nobody is asked for them. Blank ones, and those to no prompt, are counted."""

    name: str = Field(pattern=_NAME)
    """Names the files and the records' `source_model`, as a source's name does."""
    model: str
    """Who made them, for the record."""
    prompt: str
    """Column with the prompt's text; an answer goes to the prompt whose only turn says just that."""
    answer: str
    """Column with the answer's text."""
    domains: tuple[Domain, ...] = DOMAINS


class SamplerConfig(ConfigModel):
    backend: Backend = "transformers"
    """transformers and vllm hold one source after another in this process; openai asks all servers side by side."""
    batch_size: PositiveInt = 64
    """Answers that transformers makes together."""
    chunk_size: PositiveInt = 1024
    """Of so many requests, transformers puts those of like length into a batch. On a Ray cluster an actor takes so many
    at a time: with vLLM, make it many times the engine's `max_num_seqs`, since an engine runs empty at the end of each.
    """
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"


class SamplesPerPrompt(ConfigModel):
    instruction: PositiveInt = 5
    math: PositiveInt = 5
    code: PositiveInt = 8
    chinese: PositiveInt = 1


class RewardModelConfig(ConfigModel):
    """A reward model: ArmoRM."""

    model: Annotated[str, pydantic.AfterValidator(on_disk)]
    """Directory or Hub id of a checkpoint of ArmoRM's architecture, such as RLHFlow/ArmoRM-Llama3-8B-v0.1."""
    revision: str | None = None
    """Branch, tag or commit of a Hub id."""
    backend: Literal["transformers", "vllm"] = "transformers"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the backbone; the heads compute in float32."""
    batch_tokens: PositiveInt = 16384
    """Tokens a batch, padding included; transformers makes a longer conversation a batch of its own, vLLM several."""
    engine: dict[RewardEngineArgument, Any] = Field(default_factory=dict)
    """Of the backend vllm: where and how fast it computes. No score depends on it, so all scores are kept."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "RewardModelConfig":
        if self.engine and self.backend != "vllm":
            raise ValueError(f"engine arguments are for the backend vllm, not {self.backend}")
        return self

    def __str__(self) -> str:
        return f"{self.model} ({self.backend}, {self.dtype})"


def _reward(value: Any) -> Any:
    """A section read as what it must be, so that a mistake in it is told by its own key."""
    if isinstance(value, dict):
        return RewardModelConfig.model_validate(value, strict=True)
    if not isinstance(value, str | RewardModelConfig | None):
        raise ValueError("expected module:attribute, or a section with the key 'model'")
    return value


class ScorerConfig(ConfigModel):
    reward: Annotated[str | RewardModelConfig | None, pydantic.BeforeValidator(_reward)] = None
    """A reward model; or `module:attribute` of a function `score(prompt, text) -> (reward, verdict)`, or of a class
    with that method."""
    correctness: Correctness | None = None
    """Gives the verdict; without it the verdict is the reward's."""
    timeout_seconds: PositiveFloat = 5.0
    """Of a verification (math: wall time; code: CPU time of all tests of an answer)."""
    memory_mb: PositiveInt = 1024
    """Of a verification."""


class MathScorerConfig(ScorerConfig):
    correctness: Correctness = "math_verify"


class CodeScorerConfig(ScorerConfig):
    correctness: Correctness = "code"


class ScorersConfig(ConfigModel):
    instruction: ScorerConfig = ScorerConfig()
    math: MathScorerConfig = MathScorerConfig()
    code: CodeScorerConfig = CodeScorerConfig()
    chinese: ScorerConfig = ScorerConfig()
    workers: PositiveInt | None = None
    """Processes that verify. Default: one a core."""
    allow_unsafe: bool = False
    """Run programs also where no sandbox holds: on a machine that holds nothing of value."""


class ActorsConfig(ConfigModel):
    actors: PositiveInt = 1
    """Processes at a time, as far as the cluster has room; the others wait for it."""
    cpus: NonNegativeFloat = 1
    """That each keeps to itself, all of one machine."""
    gpus: NonNegativeFloat = 0
    """Likewise; of a model in vLLM, for each of its tensor times pipeline parallel ranks."""


class RayConfig(ConfigModel):
    address: str = "auto"
    """`HOST:PORT`; `auto` is the cluster that this machine belongs to, `local` one of this machine alone."""
    sample: ActorsConfig = ActorsConfig()
    """What holds a source model. Servers are asked from here, without actors."""
    score: ActorsConfig = ActorsConfig()
    """What judges answers; `scorers.workers` is then by actor, and by default its CPUs."""


class _Margins(ConfigModel):
    min_margin: float | None = Field(0.01, ge=0)
    max_margin: float | None = Field(0.1, ge=0)
    """Bounds, inclusive, of chosen minus rejected reward; null is no bound."""

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> "_Margins":
        if self.min_margin is not None and self.max_margin is not None and self.min_margin > self.max_margin:
            raise ValueError(f"min_margin {self.min_margin} exceeds max_margin {self.max_margin}")
        return self


class InstructionSelection(_Margins):
    sft_fraction: float = Field(0.4, ge=0, le=1)
    """Of the prompts with a valid pair; the others serve DPO. Each prompt's side is a hash of its id and the seed, so
    the share is met to chance (51,098 prompts: to 0.4 points), and prompts added later move no other prompt."""
    pair_source: PairSource = "best"
    """Which source's pair, of those valid: with the best chosen answer, a seeded random one, or the widest margin."""


class MathSelection(_Margins):
    pair_source: PairSource = "best"


class CodeSelection(_Margins):
    min_margin: float | None = Field(None, ge=0)
    max_margin: float | None = Field(None, ge=0)
    same_source: bool = True
    """Whether both answers of a pair must come from one source."""
    pair_source: PairSource = "best"


class ChineseSelection(ConfigModel):
    source: str | None = None
    """The one source whose answers are used. Default: any."""


class SelectionConfig(ConfigModel):
    instruction: InstructionSelection = InstructionSelection()
    math: MathSelection = MathSelection()
    code: CodeSelection = CodeSelection()
    chinese: ChineseSelection = ChineseSelection()


class WriteConfig(ConfigModel):
    format: Literal["arrayrecord", "tfrecord"] = "arrayrecord"
    num_shards: PositiveInt = 8
    eval_fraction: float = Field(0.01, ge=0, lt=1)
    """Of each domain's selected prompts, at least one prompt a domain unless 0; the same prompts for sft and dpo."""


class PipelineConfig(ConfigModel):
    output_dir: Location
    seed: int = 0
    prompts: list[PromptsConfig] = Field(min_length=1)
    overlap: OverlapConfig = OverlapConfig()
    sources: tuple[SourceConfig, ...] = ()
    given: tuple[GivenConfig, ...] = ()
    sampler: SamplerConfig = SamplerConfig()
    samples_per_prompt: SamplesPerPrompt = SamplesPerPrompt()
    max_new_tokens: PositiveInt = 4096
    scorers: ScorersConfig = ScorersConfig()
    selection: SelectionConfig = SelectionConfig()
    write: WriteConfig = WriteConfig()
    engine: Literal["local", "ray"] = "local"
    """Whether this machine samples and scores, or a Ray cluster."""
    ray: RayConfig = RayConfig()

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "PipelineConfig":
        names = [source.name for source in self.answerers]
        if not names:
            raise ValueError("sources: there are none, and no given answers either")
        if len(set(names)) < len(names):
            raise ValueError(f"sources: a name occurs twice in {', '.join(names)}")
        for source in self.sources:
            backend = self.backend(source)
            if (backend == "openai") != (source.server is not None):
                problem = "needs a server.url" if source.server is None else f"has a server, but the backend {backend}"
                raise ValueError(f"sources: {source.name} {problem}")
            if source.engine and backend != "vllm":
                raise ValueError(f"sources: {source.name} has engine arguments, but the backend {backend}")
        wanted = self.selection.chinese.source
        able = [source.name for source in self.answerers if "chinese" in source.domains]
        if wanted is not None and wanted not in able:
            found = f"is none of the sources with the domain chinese ({', '.join(able) or 'none'})"
            raise ValueError(f"selection.chinese.source: {wanted!r} {found}")
        return self

    @property
    def answerers(self) -> list[SourceConfig | GivenConfig]:
        """All that answers come from, in the order in which they are shown."""
        return [*self.sources, *self.given]

    def backend(self, source: SourceConfig) -> Backend:
        """What asks the source."""
        return source.backend or self.sampler.backend
