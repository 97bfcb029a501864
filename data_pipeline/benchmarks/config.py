"""The configuration of a benchmark run as typed, validated values."""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, PositiveInt

from data_pipeline.benchmarks import published
from data_pipeline.benchmarks.benchmark import Family, Profile
from data_pipeline.benchmarks.judge import JudgeConfig
from data_pipeline.benchmarks.registry import BENCHMARKS
from data_pipeline.config import (
    Arguments,
    Backend,
    CostConfig,
    PipelineConfig,
    SamplerConfig,
    ServerConfig,
    SourceConfig,
)
from data_pipeline.domains import VerifierLimits, on_disk
from fusejax.common.chat_template import ChatConfig
from fusejax.common.cli import ConfigModel, Location, UserError

MODEL = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class ModelConfig(ConfigModel):
    """A model that answers. How tokens are chosen is the benchmarks' business, not the model's."""

    model: Annotated[str, pydantic.AfterValidator(on_disk)]
    """Directory or Hub id of a Hugging Face checkpoint with a chat template, as of a source of the pipeline."""
    revision: str | None = None
    """Branch, tag or commit of a Hub id."""
    family: Family | None = None
    """Whose published sampling parameters and templates it is asked with. Default: by the checkpoint's `model_type`."""
    backend: Backend | None = None
    """Default: `sampler.backend`."""
    max_model_len: PositiveInt | None = None
    """Tokens of prompt and answer together. Default: `max_position_embeddings` of the model."""
    chat_template_kwargs: Arguments = Field(default_factory=dict)
    """Arguments of the model's chat template, such as `enable_thinking: false`."""
    engine: Arguments = Field(default_factory=dict)
    """For the backend vllm: further engine arguments, such as `tensor_parallel_size`."""
    server: ServerConfig | None = None
    """For the backend openai: where the model is served."""
    published: str | None = None
    """A published model, such as FuseChat-Llama-3.1-8B-Instruct, whose numbers are shown beside."""
    against: str | None = None
    """Another of `models`, which it is compared with item by item."""
    cost: CostConfig = CostConfig()
    """What `--dry-run` assumes."""

    def source(self, name: str) -> SourceConfig:
        """The model as a source of the pipeline."""
        return SourceConfig.model_validate(
            {"name": name, **self.model_dump(exclude={"family", "published", "against"}), **self._secret()}
        )

    def _secret(self) -> dict[str, Any]:
        """What `model_dump` masks."""
        return {"server": self.server, "engine": self.engine, "chat_template_kwargs": self.chat_template_kwargs}


class SettingConfig(ConfigModel):
    """What may be set of one benchmark."""

    limit: PositiveInt | None = None
    """Only so many items, drawn by the seed. Default: the run's `limit`."""
    data: Location | None = None
    """The file of its items, in place of the one in `data_dir` or on the Hub."""
    samples: PositiveInt | None = None
    """Answers to each item. Default: as published."""


class BenchmarkConfig(ConfigModel):
    output_dir: Location
    """Where everything is written; answers and judgments that are there are not asked for again."""
    seed: int = 0
    """Of sampled answers, of the items that a limit leaves, of intervals."""
    models: dict[Annotated[str, Field(pattern=MODEL)], ModelConfig] = Field(min_length=1)
    """Name -> model, in the order of tables."""
    profile: Profile = "clean"
    """clean: each model's chat template, once. fusechat3: prompts as FuseChat-3.0's scripts made them, their defects
    included, for models of its three families."""
    benchmarks: Literal["all"] | dict[str, SettingConfig] = "all"
    """Which, each with its settings; a list of names is enough."""
    limit: PositiveInt | None = None
    """Only so many items of each benchmark."""
    data_dir: Location | None = None
    """Folder with data files, as NAME.jsonl, .json, .csv or .parquet, each also .gz. What is not there comes from the
    Hub."""
    judge: dict[str, JudgeConfig] = Field(default_factory=dict)
    """Name of a benchmark, or `default` -> who judges its answers. Without one, those that need a judge are left out,
    and named."""
    training: tuple[Location, ...] = ()
    """Tables of training prompts (`prompts.parquet` of a pipeline run): items that they hold are counted, and scores
    given without them."""
    bootstrap: PositiveInt = 1000
    """Draws of an interval."""
    sampler: SamplerConfig = SamplerConfig()
    """How models are asked."""
    chat: ChatConfig = ChatConfig()
    """How prompts become text."""
    verifier: VerifierLimits = VerifierLimits()
    """Limits of a program that is run."""
    workers: PositiveInt | None = None
    """Processes that grade at a time. Default: the machine's cores."""
    allow_unsafe: bool = False
    """Run programs even where no sandbox holds."""

    @pydantic.field_validator("benchmarks", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {name: {} for name in value} if isinstance(value, list | tuple) else value

    @pydantic.model_validator(mode="after")
    def _known(self) -> "BenchmarkConfig":
        chosen = () if self.benchmarks == "all" else self.benchmarks
        for key, names in (("benchmarks", chosen), ("judge", [name for name in self.judge if name != "default"])):
            for name in names:
                if name not in BENCHMARKS:
                    raise ValueError(f"{key}: {name!r} is none of {', '.join(BENCHMARKS)}")
        for name, model in self.models.items():
            for key, value, known in (
                ("published", model.published, published.MODELS),
                ("against", model.against, self.models),
            ):
                if value is not None and (value not in known or value == name):
                    others = [each for each in known if each != name]
                    raise ValueError(f"models: {name}: {key}: {value!r} is none of {', '.join(others)}")
            backend = model.backend or self.sampler.backend
            if (backend == "openai") != (model.server is not None):
                problem = "needs a server.url" if model.server is None else f"has a server, but the backend {backend}"
                raise ValueError(f"models: {name} {problem}")
        return self

    @property
    def chosen(self) -> dict[str, SettingConfig]:
        """The benchmarks, in the order of tables, with their settings."""
        if self.benchmarks == "all":
            return {name: SettingConfig() for name in BENCHMARKS}
        return {name: self.benchmarks[name] for name in BENCHMARKS if name in self.benchmarks}

    def only(self, names: list[str]) -> "BenchmarkConfig":
        """The same run with these of its benchmarks alone.

        Raises:
          UserError: it has no benchmark of that name.
        """
        for name in names:
            if name not in self.chosen:
                raise UserError(f"--only: {name!r} is none of {', '.join(self.chosen)}")
        return self.model_copy(update={"benchmarks": {name: self.chosen[name] for name in names}})

    def judge_of(self, benchmark: str) -> JudgeConfig | None:
        return self.judge.get(benchmark) or self.judge.get("default")

    def pipeline(self) -> PipelineConfig:
        """The same models as sources of a pipeline, for its samplers."""
        sources = tuple(model.source(name) for name, model in self.models.items())
        return PipelineConfig(
            output_dir=self.output_dir, seed=self.seed, sources=sources, sampler=self.sampler, chat=self.chat
        )
