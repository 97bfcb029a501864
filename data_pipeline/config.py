"""The configuration of the whole data pipeline as typed, validated values."""

import json
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import polars as pl
import pydantic
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, PrivateAttr

from data_pipeline.domains import (
    SECTIONS,
    DomainConfig,
    DomainName,
    SamplesPerPrompt,
    ScorersConfig,
    SelectionConfig,
    on_disk,
    resolve,
)
from data_pipeline.prompts.adapters import ADAPTERS
from data_pipeline.selection import hashing
from data_pipeline.selection.rules import WRPO, for_sft
from fusejax.common import redact
from fusejax.common.chat_template import ChatConfig
from fusejax.common.cli import ConfigModel, Location

Backend = Literal["transformers", "vllm", "openai", "jax"]


class ColumnsConfig(ConfigModel):
    """Our column name -> the file's column name. A column that is not set here is looked up under our name."""

    id: str | None = None
    """Names the prompt. Default: the data set's name and the row's number."""
    messages: str | None = None
    """A list of `{role, content}`, ending in a user turn."""
    prompt: str | None = None
    """Where there are no messages: the text of one user turn."""
    input: str | None = None
    """What the instruction in `prompt` is about, in Alpaca-like sets: follows it after a blank line."""
    answer: str | None = None
    """The gold answer, for mathematics."""
    tests: str | None = None
    """Python assertions, a text or a list of them, for code."""


class RowsConfig(ConfigModel):
    """Where rows come from."""

    path: Location
    """A file (.jsonl, .json, .csv, .parquet, each also .gz), or the Hub id of a data set or a folder with its files."""
    subset: str | None = None
    """Configuration of a Hub data set that has several."""
    split: str = "train"
    """Split of a Hub data set."""
    revision: str | None = None
    """Commit, tag or branch of a Hub data set."""


class PromptsConfig(RowsConfig):
    dataset: str
    """The data set's name in records and reports."""
    domain: str
    """One of `domains`."""
    limit: PositiveInt | None = None
    """Draw this many of the valid prompts, by the seed, before sampling; selection drops some of them later."""
    adapter: str | None = None
    """Hub id of the data set whose adapter (columns and filters) reads these rows. Default: `path`, if it is a known
    Hub id and no columns are named."""
    columns: ColumnsConfig = ColumnsConfig()
    """The file's column names, where they differ from ours."""

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
    """Columns with the texts, or lists of texts, that no prompt may overlap with."""


class OverlapConfig(ConfigModel):
    """Prompts left out because they resemble other prompts or overlap with evaluation sets."""

    near_duplicates: float | None = Field(None, gt=0, le=1)
    """The later of two prompts is left out if the Jaccard similarity of their runs of five words is at least this.
    Default: only equal prompts are left out, since short prompts may well share a template."""
    evaluation_sets: tuple[EvaluationSetConfig, ...] = ()
    """A prompt that shares `ngram` words in a row with a text of these is left out; a shorter prompt, if it equals one
    of the texts."""
    ngram: PositiveInt = 13
    """Words in a row that count as shared."""

    @pydantic.model_validator(mode="after")
    def _distinct_names(self) -> "OverlapConfig":
        names = [entry.name for entry in self.evaluation_sets]
        if len(set(names)) < len(names):
            raise ValueError(f"evaluation_sets: a name occurs twice in {', '.join(names)}")
        return self


def _without_secrets(section: dict[str, Any]) -> dict[str, Any]:
    return redact.values(section)


def _is_json(section: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(section, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError("expected values that JSON has") from None
    return section


Arguments = Annotated[dict[str, Any], pydantic.AfterValidator(_is_json), pydantic.PlainSerializer(_without_secrets)]
"""Arguments of other programs; what they call a key, a token or a password is not written down."""


class ServerConfig(ConfigModel):
    url: str = Field(pattern=r"^https?://", repr=False)
    """Up to and with `/v1`. A user and password, or a query, are sent, but never written down."""
    mode: Literal["completions", "chat"] = "completions"
    """completions sends token ids to `/completions`, as vLLM and SGLang take them: the prompt is exactly the one that
    the source's chat template writes here. chat sends messages to `/chat/completions`, for servers without token ids
    (hosted APIs, llama.cpp, Ollama): they need no checkpoint here, and nobody here can tell how long a prompt is."""
    served_as: str | None = None
    """The model's name there. Default: the source's `model`."""
    answers_as: str | None = None
    """The model's name in the server's answers, where it is another one, as for deployments and aliases. An answer of
    another model is refused."""
    extra_body: Arguments = Field(default_factory=dict)
    """Further parameters of a request, sent as they are, such as `reasoning_effort: low`; null leaves out one that is
    sent otherwise, as in `seed: null`."""
    concurrency: PositiveInt = 128
    """Requests under way at a time."""
    patience_seconds: PositiveFloat = 600.0
    """How long a failing request is retried before the run ends."""
    timeout_seconds: PositiveFloat = 3600.0
    """How long a server may be silent before the request counts as lost."""
    api_key_variable: str | None = Field(None, pattern=r"^[A-Za-z_]\w*$")
    """The environment variable that holds the server's key."""

    @pydantic.field_validator("url")
    @classmethod
    def _whole(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:  # Its message may hold the password.
            host = None
        if not host:
            raise ValueError("no URL with a host and perhaps a port; in a password, / ? # and @ are written as %2F ...")
        if parts.path.rstrip("/").endswith("/completions"):
            raise ValueError("ends at /v1; what comes after it is added here")
        return url

    @pydantic.field_serializer("url")
    def _shown(self, url: str) -> str:
        return redact.shown(url)

    @pydantic.field_validator("extra_body")
    @classmethod
    def _elsewhere(cls, body: dict[str, Any]) -> dict[str, Any]:
        for key in body:
            if key in _SET_ELSEWHERE and (body[key] is not None or key not in LEAVABLE):
                raise ValueError(f"{key} is set elsewhere, by {_SET_ELSEWHERE[key]}")
        return body

    @pydantic.model_validator(mode="after")
    def _one_login(self) -> "ServerConfig":
        if self.api_key_variable is not None and "@" in urlsplit(self.url).netloc:
            raise ValueError("url has a user and there is an api_key_variable: a server takes one of them")
        return self


LEAVABLE = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "max_tokens")
"""Parameters of a request that some servers refuse to be told, and `extra_body` can leave out."""
_SET_ELSEWHERE = {
    "model": "served_as",
    "messages": "prompts",
    "prompt": "prompts",
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "seed": "seed",
    "n": "samples",
    "stream": "nothing: answers come whole",
    "chat_template_kwargs": "chat_template_kwargs of the source",
    **{name: name for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")},
    **{name: name for name in ("presence_penalty", "frequency_penalty", "stop")},
}


class CostConfig(ConfigModel):
    """What `sample --dry-run` assumes, until there are answers to measure it by."""

    gpus: PositiveInt | None = None
    """GPUs that the source takes. Default: for vLLM in this process, the product of its parallel sizes; else 1."""
    tokens_per_second: PositiveFloat | None = None
    """Answer tokens per second on these GPUs together. Default: the rate of the answers so far."""
    answer_tokens: PositiveInt | None = None
    """Tokens per answer. Default: the mean of the answers so far; before there are any, the limit on an answer."""


_ENGINE_ELSEWHERE = {
    "model": "model",
    "tokenizer": "model",
    "revision": "revision",
    "max_model_len": "max_model_len",
    "dtype": "sampler.dtype",
    "seed": "seed",
}


def _none_of(elsewhere: dict[str, str], engine: dict[str, Any]) -> dict[str, Any]:
    for key, place in elsewhere.items():
        if key in engine:
            raise ValueError(f"{key} is set elsewhere, by {place}")
    return engine


_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class SourceConfig(ConfigModel):
    name: str = Field(pattern=_NAME)
    """Names the files and the records' `source_model`."""
    model: Annotated[str, pydantic.AfterValidator(on_disk)]
    """Directory or Hub id of a Hugging Face checkpoint with a chat template. If a server runs the model, the tokenizer
    and `config.json` are enough; behind a chat server, it is a name and nothing else."""
    revision: str | None = None
    """Branch, tag or commit of a Hub id."""
    temperature: NonNegativeFloat = 0.8
    """0 is greedy."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Nucleus sampling."""
    top_k: int | None = None
    """Most tokens to choose from, the likeliest. Default, and -1: all; behind a chat server, its own default."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Least probability of a token to choose, as a share of the likeliest one's. Default, and 0: none; behind a chat
    server, its own default."""
    repetition_penalty: PositiveFloat = 1.0
    """As in transformers and vLLM: 1 is none."""
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    """Taken from the logit of every token that the answer holds so far, as in OpenAI's API."""
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    """The same, for each time that the token occurs."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they are no part of it."""
    chat_template_kwargs: Arguments = Field(default_factory=dict)
    """Arguments of the model's chat template, such as `enable_thinking: false`."""
    domains: tuple[str, ...] = ()
    """The domains whose prompts it answers. Default: all."""
    backend: Backend | None = None
    """Default: `sampler.backend`."""
    max_model_len: PositiveInt | None = None
    """Tokens of prompt and answer together. Default: `max_position_embeddings` of the model."""
    engine: Arguments = Field(default_factory=dict)
    """For the backend vllm: further engine arguments, such as `tensor_parallel_size`."""
    server: ServerConfig | None = None
    """For the backend openai: where the model is served."""
    cost: CostConfig = CostConfig()
    """What `sample --dry-run` assumes."""

    @pydantic.field_validator("engine")
    @classmethod
    def _ours(cls, engine: dict[str, Any]) -> dict[str, Any]:
        return _none_of(_ENGINE_ELSEWHERE, engine)

    @pydantic.field_validator("top_k")
    @classmethod
    def _count(cls, top_k: int | None) -> int | None:
        if top_k is not None and top_k < 1 and top_k != -1:
            raise ValueError("at least 1; -1 or null for no limit")
        return None if top_k == -1 else top_k

    @pydantic.field_validator("min_p")
    @classmethod
    def _share(cls, min_p: float | None) -> float | None:
        return min_p or None

    @pydantic.field_validator("stop")
    @classmethod
    def _some_text(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("an empty text would end every answer at once")
        return stop

    @pydantic.field_validator("chat_template_kwargs")
    @classmethod
    def _of_the_template(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        for key in ("messages", "conversation", "chat_template", "tokenize", "add_generation_prompt"):
            if key in arguments:
                raise ValueError(f"{key} is no argument of a template that can be chosen here")
        return arguments

    @property
    def chat_server(self) -> ServerConfig | None:
        """The server that is sent messages, if there is one."""
        return self.server if self.server is not None and self.server.mode == "chat" else None

    @pydantic.model_validator(mode="after")
    def _unknown_to_chat_servers(self) -> "SourceConfig":
        for key in ("revision", "max_model_len"):
            if self.chat_server is not None and getattr(self, key) is not None:
                raise ValueError(f"{key}: behind a chat server, nothing here can see to it; leave it out")
        return self


LATER = ("top_k", "min_p", "presence_penalty", "frequency_penalty", "stop")
"""Sampling parameters that came later: recorded, and part of an answer's key, only where they are set."""


def sampled_with(source: SourceConfig) -> dict[str, Any]:
    """The sampling parameters of a source's requests, for the record; later ones only where they are set.

    >>> sampled_with(SourceConfig(name="s", model="m", top_k=20))
    {'temperature': 0.8, 'top_p': 0.95, 'repetition_penalty': 1.0, 'top_k': 20}
    """
    body = redact.values(source.server.extra_body) if source.server is not None else {}
    always = {name: getattr(source, name) for name in ("temperature", "top_p", "repetition_penalty")}
    later: dict[str, Any] = {name: getattr(source, name) for name in LATER}
    later["chat_template_kwargs"] = redact.values(source.chat_template_kwargs)
    return {
        **{name: None if name in body else value for name, value in always.items()},
        **{name: value for name, value in later.items() if value},
        **({"extra_body": body} if body else {}),
    }


class GivenConfig(RowsConfig):
    """Answers that come with a data set: no model is asked for them. Blank answers, and answers to prompts that are not
    in the table, are counted and left out."""

    name: str = Field(pattern=_NAME)
    """Names the files and the records' `source_model`, as a source's name does."""
    model: str
    """Who made them, for the record."""
    prompt: str
    """Column with the prompt's text; an answer goes to the prompt whose only turn is this text, spaces at its ends
    aside."""
    answer: str
    """Column with the answer's text."""
    where: dict[str, str | bool | int | float] = Field(default_factory=dict)
    """Column -> the value that a row must have there, such as `{model: claude-2.1}`: for files with the answers of
    several models, each of which is an entry. Default: every row."""
    reward: str | None = None
    """Column with the answer's reward, a number, for domains without a `reward`. Answers without a finite number there
    have none, and a rule that needs one cannot use it."""
    verdict: str | None = None
    """Column with the answer's verdict, for domains without a `verifier`: true or correct, false or wrong, unknown.
    Anything else counts as unknown."""
    domains: tuple[str, ...] = ()
    """The domains whose prompts it answers. Default: all."""


class SamplerConfig(ConfigModel):
    backend: Backend = "transformers"
    """transformers and vllm load one source after another in this process; openai queries all servers in parallel.
    jax is the decoder of `fusejax`, for TPUs: one source after another, on the first device."""
    batch_size: PositiveInt = 64
    """Answers that transformers and jax generate together; jax rounds up to a power of two."""
    chunk_size: PositiveInt = 1024
    """Requests that transformers and jax sort by length before they cut them into batches. On a Ray cluster, requests
    that an actor takes at a time: with vLLM, many times the engine's `max_num_seqs`, since the engine runs empty at the
    end of each chunk."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the models' weights; `auto` is the checkpoint's own."""


class ActorsConfig(ConfigModel):
    actors: PositiveInt = 1
    """Processes at a time; where the cluster has no room for all, some wait."""
    cpus: NonNegativeFloat = 1
    """CPUs that each actor reserves, all on one machine."""
    gpus: NonNegativeFloat = 0
    """GPUs that each actor reserves; for a model in vLLM, per rank (tensor times pipeline parallel)."""


class RayConfig(ConfigModel):
    address: Annotated[str, pydantic.PlainSerializer(redact.mask)] = "auto"
    """`HOST:PORT`; `auto` is the cluster that this machine belongs to, `local` one of this machine alone."""
    sample: ActorsConfig = ActorsConfig()
    """Actors that hold a source model. Servers are queried from this machine, without actors."""
    score: ActorsConfig = ActorsConfig()
    """Actors that judge answers; `scorers.workers` then counts per actor, and defaults to the actor's CPUs."""


class WriteConfig(ConfigModel):
    format: Literal["arrayrecord", "tfrecord"] = "arrayrecord"
    """Format of the shards. ArrayRecord is read at random, TFRecord as a whole."""
    num_shards: PositiveInt = 8
    """Files per split."""
    eval_fraction: float = Field(0.01, ge=0, lt=1)
    """Share of each domain's selected prompts held out for evaluation, at least one prompt per domain unless 0; the
    same prompts for sft and dpo. Prompts of triples are held out apart from these."""


class DistributionsConfig(ConfigModel):
    """What the sources would have said at each place of the chosen answers, for explicit fusion. The stage
    `distributions` takes these defaults where there is no such section; `run` leaves it out then. The stage
    `likelihoods` reads sources in the same way."""

    sources: tuple[str, ...] = ()
    """Names of `sources`. Default: all."""
    data: Location | None = None
    """SFT shards, as DIR/SPLIT. Default: `sft/train` in `output_dir`."""
    pairs: Location | None = None
    """For the stage `likelihoods`: the folder of preference shards. Default: `dpo` in `output_dir`."""
    top_k: PositiveInt = 20
    """Likeliest tokens that are kept at each place. A token of an answer takes 6 bytes times this, and 10."""
    template: Literal["own", "target"] = "own"
    """Whose chat template writes the prompts: each source's own, or for all sources the target's, as published."""
    target: str | None = None
    """For `template: target`: directory or Hub id of the target."""
    backend: Literal["transformers", "vllm"] | None = None
    """Default: what the source is sampled with. For sources behind servers, it must be named."""
    engine: Arguments = Field(default_factory=dict)
    """For the backend vllm: engine arguments besides the source's, which they replace."""

    @pydantic.field_validator("engine")
    @classmethod
    def _ours(cls, engine: dict[str, Any]) -> dict[str, Any]:
        fixed = dict.fromkeys(("max_logprobs", "logprobs_mode", "enable_prefix_caching"), "the stage")
        return _none_of(_ENGINE_ELSEWHERE | fixed, engine)

    @pydantic.model_validator(mode="after")
    def _target_for_its_template(self) -> "DistributionsConfig":
        if (self.template == "target") != (self.target is not None):
            raise ValueError("template: target and a target belong together")
        return self


class PipelineConfig(ConfigModel):
    output_dir: Location
    """Where every stage reads and writes."""
    seed: int = 0
    """Seed of every random choice: which prompts are drawn, samples, ties, splits."""
    prompts: list[PromptsConfig] = Field(default_factory=list)
    """Data sets to take prompts from. Without any there are only the stages `distributions` and `likelihoods`, of
    shards that are there already."""
    overlap: OverlapConfig = OverlapConfig()
    """Prompts to leave out: near duplicates, and those that overlap with evaluation sets."""
    sources: tuple[SourceConfig, ...] = ()
    """Models to ask."""
    given: tuple[GivenConfig, ...] = ()
    """Answers that come with data sets."""
    sampler: SamplerConfig = SamplerConfig()
    """How models are asked."""
    chat: ChatConfig = ChatConfig()
    """How prompts become text."""
    max_new_tokens: PositiveInt = 4096
    """Most tokens of an answer."""
    domains: dict[DomainName, DomainConfig] = Field(default_factory=dict)
    """Name -> domain, in the order of reports. Default: instruction, math, code and chinese, as `domains.DEFAULTS`."""
    scorers: ScorersConfig = ScorersConfig()
    """How answers are verified; formerly each domain's scorers, too."""
    samples_per_prompt: SamplesPerPrompt | None = Field(None, exclude=True)
    """The earlier form, with `selection` and the domains in `scorers`, of what is now read into `domains`."""
    selection: SelectionConfig | None = Field(None, exclude=True)
    """The earlier place of `domains.NAME.rule`."""
    write: WriteConfig = WriteConfig()
    """How shards are written."""
    # No part of what the other stages' results depend on.
    distributions: DistributionsConfig | None = Field(None, exclude=True)
    """What the sources would have said, for explicit fusion."""
    engine: Literal["local", "ray"] = "local"
    """Whether this machine samples and scores, or a Ray cluster."""
    ray: RayConfig = RayConfig()
    """The Ray cluster of `engine: ray`."""

    _earlier: frozenset[str] = PrivateAttr(frozenset())
    """Domains that the file describes in the earlier sections."""

    @pydantic.model_validator(mode="after")
    def _resolved(self) -> "PipelineConfig":
        """Makes `domains` hold all domains, in whichever form they were written, and each source name its own."""
        written = self.domains
        found = resolve(written, self.samples_per_prompt, self.scorers, self.selection)
        everywhere = {"domains": tuple(found)}

        def named(entries: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(entry if entry.domains else entry.model_copy(update=everywhere) for entry in entries)

        # By `object.__setattr__`, since the model is frozen.
        for name, value in (("domains", found), ("sources", named(self.sources)), ("given", named(self.given))):
            object.__setattr__(self, name, value)
        self._earlier = frozenset(found.keys() - written.keys())
        return self

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
        return self

    @pydantic.model_validator(mode="after")
    def _known_domains(self) -> "PipelineConfig":
        used = [(f"prompts.{number}.domain", entry.domain) for number, entry in enumerate(self.prompts)]
        used += [(f"sources.{number}.domains", name) for number, e in enumerate(self.sources) for name in e.domains]
        used += [(f"given.{number}.domains", name) for number, e in enumerate(self.given) for name in e.domains]
        for key, name in used:
            if name not in self.domains:
                raise ValueError(f"{key}: {name!r} is none of the domains {', '.join(self.domains)}")
        for name, domain in self.domains.items():
            for key in ("source", "target"):
                named = getattr(domain.rule, key, None)
                able = [source.name for source in self.answerers if name in source.domains]
                if named is not None and named not in able:
                    found = f"is none of the sources with the domain {name} ({', '.join(able) or 'none'})"
                    raise ValueError(f"{self.key(name, 'rule')}.{key}: {named!r} {found}")
                if key == "target" and able == [named]:
                    raise ValueError(f"{self.key(name, 'rule')}.target: {named!r} is the domain's only source")
        self._refuse_targets_as_sources()
        return self

    def _refuse_targets_as_sources(self) -> None:
        """Raises `ValueError` where a rule's target answers a domain of which it is none: there its answers would
        compete with the sources', and it would be asked what it was trained on."""
        target_of = {name: getattr(domain.rule, "target", None) for name, domain in self.domains.items()}
        for kind in ("sources", "given"):
            for entry in getattr(self, kind):
                own = [name for name, target in target_of.items() if target == entry.name]
                other = next((name for name in entry.domains if own and name not in own), None)
                if other is not None:
                    is_target = f"{entry.name}: it is the target of {self.key(own[0], 'rule')}"
                    remedy = f"give it `domains: [{', '.join(own)}]`"
                    raise ValueError(f"{kind}: {is_target}, and would answer domains.{other} as a source: {remedy}")

    @pydantic.model_validator(mode="after")
    def _judged_once(self) -> "PipelineConfig":
        for number, entry in enumerate(self.given):
            for column, judge in (("reward", "reward"), ("verdict", "verifier")):
                judged = [name for name in entry.domains if getattr(self.domains[name], judge) is not None]
                if getattr(entry, column) is not None and judged:
                    both = f"given.{number}.{column} and {self.key(judged[0], judge)} both give answers a {column}"
                    why = "; rewards on two scales cannot be compared" if column == "reward" else ""
                    raise ValueError(f"{both}{why}: keep one, or leave {judged[0]} out of given.{number}.domains")
        return self

    @property
    def answerers(self) -> list[SourceConfig | GivenConfig]:
        """Everything that answers come from, in the order of reports."""
        return [*self.sources, *self.given]

    def prompts_of(self, source: SourceConfig | GivenConfig, prompts: pl.DataFrame) -> pl.DataFrame:
        """Those of the prompts (`id`, `domain`) that the source answers: of its domains, but as a rule's target not
        those whose examples it has learned from."""
        mine = prompts.filter(pl.col("domain").is_in(source.domains))
        for name, domain in self.domains.items():
            if isinstance(domain.rule, WRPO) and domain.rule.target == source.name:
                learned = for_sft(hashing.keys(self.seed, mine["id"]), domain.rule.sft_fraction)
                mine = mine.filter((mine["domain"] != name) | ~learned)
        return mine

    def backend(self, source: SourceConfig) -> Backend:
        """The backend that samples from the source."""
        return source.backend or self.sampler.backend

    def key(self, domain: str, name: str) -> str:
        """What the file calls the key `name` of the domain, for errors."""
        return SECTIONS[name].format(domain) if domain in self._earlier else f"domains.{domain}.{name}"
