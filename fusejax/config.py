"""The configurations of a training run, of an evaluation and of a merge, as typed, validated values.

A later release resumes a run from its `run.yaml`. So the default of a new key must be what was done before the key
existed, or `fusejax.training.identity` must know what was; and a key or value that is removed must still be accepted
and translated, in a validator.
"""

import json
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, SerializeAsAny

from fusejax.common.chat_template import ChatConfig
from fusejax.common.cli import ConfigModel, Location
from fusejax.data.batch import BatchShape
from fusejax.data.records import ANSWERS, Kind
from fusejax.merging.methods import METHODS, MergeMethod, find_method
from fusejax.objectives.losses import LOSSES, FusedReference, PairLoss, find_loss


class DataConfig(ConfigModel):
    train: Location
    """Shards as `DIR/SPLIT`: `data/sft/train` reads `data/sft/train-*-of-*`, as its `manifest.json` lists them.
    `python -m data_pipeline import` makes shards of a file of conversations or pairs."""
    eval: Location | None = None
    """Shards to evaluate on at each checkpoint, written as `train` is. Default: no evaluation."""


class OptimizerConfig(ConfigModel):
    name: Literal["adamw"] = "adamw"
    """AdamW, with decoupled weight decay."""
    learning_rate: PositiveFloat
    """The peak learning rate, reached after warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after warm-up. `cosine` and `linear` would reach zero one step after the last."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Share of all steps in which the learning rate rises linearly; their number is rounded up."""
    weight_decay: float = Field(0.0, ge=0)
    """What a step takes away of a parameter, multiplied by the learning rate."""
    weight_decay_on: Literal["matrices", "all"] = "matrices"
    """Which parameters decay: `matrices`, the embedding among them, or norms and biases too (`all`)."""
    b1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment, the running mean of gradients."""
    b2: float = Field(0.999, ge=0, lt=1)
    """Decay of the second moment, the running mean of squared gradients."""
    eps: PositiveFloat = 1e-8
    """Added to the square root of the second moment."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """Dtype of both moments. bfloat16 is rounded stochastically, and saves 4 bytes a parameter."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradient clipping: gradients with a larger global norm are scaled down to this norm. `null`: no clipping."""


def _by_its_preference(section: Any) -> Any:
    """The section `preference` as the model of the loss that it names."""
    if not isinstance(section, dict):
        return section
    name = section.get("loss", "dpo")
    if name not in LOSSES:
        raise ValueError(f"loss {name!r} is none of {', '.join(LOSSES)}")
    return find_loss(name).model_validate_json(json.dumps(section, default=str), strict=True)


class FusionConfig(ConfigModel):
    loss: str
    """`distributions`: the cross entropy of what the sources held likely at each place (FuseLLM, FuseChat); `alm`: how
    likely they found each chunk that they and the target have in common (approximate likelihood matching)."""
    sidecars: tuple[Location, ...] = Field(min_length=1)
    """What the sources would have said at each place of `data.train`'s answers: shards as `DIR/SPLIT`, one for each
    source, that the data pipeline's stage `distributions` has written. FuseLLM has the target itself among them."""
    clm_weight: float = Field(0.9, ge=0, le=1)
    """Lambda: the weight of the answer's own tokens; the rest is that of the sources. A token that they say nothing
    about is trained on as in plain SFT."""
    choose: str = "mince"
    """`mince`: of each answer, the source that finds it the most likely by byte; `avgce`: the mean of all sources'
    distributions, weighted by that likelihood, which `alm` does not have; or the name of a source."""

    @classmethod
    def variants(cls) -> list[type[ConfigModel]]:
        return [DistributionFusion, ALMFusion] if cls is FusionConfig else []


class DistributionFusion(FusionConfig):
    loss: Literal["distributions"] = "distributions"
    top_k: PositiveInt = 10
    """Ids of a fused distribution."""
    tail: Literal["renormalize", "keep"] = "renormalize"
    """What becomes of the probability outside of these ids: it is spread over them, or is missing, and the place counts
    less."""
    temperature: PositiveFloat = 1.0
    """Of the sources' distributions: above 1, they are flatter."""

    @pydantic.model_validator(mode="after")
    def _known_mass(self) -> "DistributionFusion":
        if self.temperature != 1 and self.tail == "keep":
            raise ValueError("fusion.tail keep needs fusion.temperature 1: else the tail's share is not known")
        return self


class ALMFusion(FusionConfig):
    loss: Literal["alm"] = "alm"
    chunk_temperature: PositiveFloat = 100.0
    """Tau: a chunk's probabilities under source and target are compared as `p ** (1 / tau)`. The loss is multiplied by
    it, so that it does not change what `clm_weight` means."""

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> "ALMFusion":
        if self.choose == "avgce":
            raise ValueError("fusion.choose avgce is for the loss distributions: chunks differ from source to source")
        return self


def _by_its_loss(section: Any) -> Any:
    """The section `fusion` as the model of the loss that it names."""
    if not isinstance(section, dict):
        return section
    models: dict[Any, type[FusionConfig]] = {"distributions": DistributionFusion, "alm": ALMFusion}
    name = section.get("loss", "distributions")
    if name not in tuple(models):
        raise ValueError(f"loss {name!r} is none of {', '.join(models)}")
    return models[name].model_validate_json(json.dumps(section, default=str), strict=True)


class MeshConfig(ConfigModel):
    """Devices along each mesh axis; an axis of -1 takes the devices that the others leave."""

    data: int = 1
    """Replicas of the parameters within a slice (data parallelism); each computes different rows."""
    fsdp: int = -1
    """Devices that split parameters, gradients, moments and rows (FSDP)."""
    tensor: int = 1
    """Devices that split heads, the MLP's inner channels and the vocabulary (tensor parallelism), but not rows. A
    vocabulary that they do not divide is padded while it is trained."""

    @pydantic.model_validator(mode="after")
    def _one_free_axis(self) -> "MeshConfig":
        sizes = (self.data, self.fsdp, self.tensor)
        if any(size == 0 or size < -1 for size in sizes):
            raise ValueError("an axis is a positive number of devices, or -1")
        if sizes.count(-1) > 1:
            raise ValueError("only one axis can be -1")
        return self


class DtypeConfig(ConfigModel):
    params: Literal["float32", "bfloat16"] = "float32"
    """Dtype of parameters. bfloat16 is rounded stochastically after each step, so that small updates add up. Sums of
    gradients are always float32."""
    compute: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of activations and matrix products. Norms, rotary embedding and softmax are always float32."""


class PackingConfig(ConfigModel):
    row_length: PositiveInt | None = None
    """Tokens that a row computes. Default: `max_length` for sft, two or three times that for pairs or triples, so
    that every example fits."""
    attention_length: PositiveInt | None = None
    """Tokens that a row attends over. Default: `row_length`. If it is more, the common prefix of the sequences
    of a pair or triple is computed once (prefix sharing): it counts once towards `row_length`, and for each here."""
    rows_per_device: PositiveInt = 1
    """Rows per device in a microbatch: trades memory for speed."""


class CheckpointConfig(ConfigModel):
    every_steps: PositiveInt = 100
    """Every so many steps, and at the end, the model is evaluated (if `data.eval` is given) and a checkpoint saved."""
    every_minutes: PositiveFloat | None = None
    """Also saves, without evaluation, after the step in which so many minutes have passed since the last checkpoint.
    It is kept only until the next one is complete. Default: only `every_steps` counts."""
    keep: PositiveInt = 2
    """How many of the last checkpoints to keep."""


class ProfileConfig(ConfigModel):
    start_step: PositiveInt
    """The first step to trace, from 1; not one of the first two, which compile."""
    steps: PositiveInt = 3
    """How many steps to trace."""


class TrainConfig(ConfigModel):
    task: Annotated[Literal["sft", "preference"], BeforeValidator(lambda name: {"dpo": "preference"}.get(name, name))]
    """Train on single conversations, or on answers that are compared, as the section `preference` says; `dpo` means
    `preference`."""
    model: Location
    """Where to start: a directory or Hub id of a Hugging Face checkpoint, or the `output_dir` of another run."""
    data: DataConfig
    """What to train and evaluate on."""
    output_dir: Location
    """The run's folder: everything is written there, and the run is resumed from there."""
    chat: ChatConfig = ChatConfig()
    """How conversations become text."""
    max_length: PositiveInt = 2048
    """Tokens of a conversation (sft) or of prompt and response (preference); responses are cut there."""
    max_prompt_length: PositiveInt | None = None
    """Longer prompts are rejected. Default: `max_length - 1`."""
    drop_unordered_pairs: bool = False
    """Rejects pairs whose chosen response is not scored above the rejected one; otherwise they are only counted. Pairs
    without scores stay. Of a triple, the pair is that of the target."""
    batch_size: PositiveInt = 128
    """Examples (sft), or pairs or triples (preference), per optimizer step, over all hosts."""
    epochs: PositiveInt = 1
    """Passes over the data set."""
    max_steps: PositiveInt | None = None
    """Ends the run early; the schedule then ends there too."""
    seed: NonNegativeInt = 0
    """Seed of the order of examples."""
    optimizer: OptimizerConfig
    """The optimizer and its learning rate."""
    preference: Annotated[PairLoss | None, SerializeAsAny(), BeforeValidator(_by_its_preference)] = None
    """`loss` names a file of `fusejax/objectives/losses/`, by default `dpo`; the other keys are that loss's own."""
    fusion: Annotated[FusionConfig | None, SerializeAsAny(), BeforeValidator(_by_its_loss)] = None
    """Explicit fusion: sft learns from sources' distributions, too. Evaluation is on the answers alone, as in sft."""
    mesh: MeshConfig = MeshConfig()
    """How devices are used."""
    dtype: DtypeConfig = DtypeConfig()
    """Dtypes of parameters and computation."""
    packing: PackingConfig = PackingConfig()
    """The rows that examples are packed into."""
    remat: Literal["none", "dots", "full"] = "full"
    """What the backward pass recomputes of each layer. `none`: nothing; `dots`: all but matrix products with parameters
    and attention (on GPUs attention is recomputed too); `full`: everything."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When to save, and what to keep."""
    profile: ProfileConfig | None = None
    """Writes a trace of some steps to `OUTPUT_DIR/profile`, for TensorBoard's profiler and XProf."""

    @property
    def record_kind(self) -> Kind:
        """The kind of the shards that the task trains on."""
        return self.preference.kind if self.preference is not None else "sft"

    @property
    def sequences_per_example(self) -> int:
        return len(ANSWERS[self.record_kind]) or 1

    @property
    def needs_reference(self) -> bool:
        """Whether the loss needs log-probabilities under the starting model."""
        return self.preference is not None and self.preference.needs_reference

    @property
    def fused_reference(self) -> FusedReference | None:
        """The sources that are a part of the reference, if the loss has any."""
        return self.preference.fused_reference if self.preference is not None else None

    @property
    def needs_progress(self) -> bool:
        """Whether the loss depends on how far the run is."""
        return self.preference is not None and self.preference.needs_progress

    @property
    def row_length(self) -> int:
        return self.packing.row_length or self.max_length * self.sequences_per_example

    @property
    def attention_length(self) -> int:
        return self.packing.attention_length or self.row_length

    def batch_shape(self, rows: int, *, weights: bool = False) -> BatchShape:
        """The shape of a microbatch with `rows` rows, whose examples perhaps have weights."""
        return BatchShape(
            rows,
            self.row_length,
            self.attention_length,
            answers=len(ANSWERS[self.record_kind]),
            reference=self.needs_reference,
            fused=self.fused_reference is not None,
            progress=self.needs_progress,
            weights=weights,
            soft=self.fusion.top_k if isinstance(self.fusion, DistributionFusion) else 0,
            chunks=isinstance(self.fusion, ALMFusion),
        )

    @property
    def shares_prefixes(self) -> bool:
        """Whether the common prefix of a pair's or a triple's sequences is computed once."""
        return self.attention_length > self.row_length

    @property
    def prompt_limit(self) -> int:
        return self.max_prompt_length or self.max_length - 1

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        if self.task == "preference" and self.preference is None:
            raise ValueError("task preference (or dpo) needs the section 'preference'")
        if self.task == "sft" and self.preference is not None:
            raise ValueError("task sft has no use for the section 'preference'")
        if self.task != "sft" and self.fusion is not None:
            raise ValueError("fusion is for task sft: only single conversations have distributions")
        if self.task == "sft" and self.drop_unordered_pairs:
            raise ValueError("drop_unordered_pairs is for task preference: only its answers have scores to compare")
        if self.preference is not None and self.preference.reference is not None and not self.needs_reference:
            raise ValueError(f"preference.reference: the loss {self.preference.loss} needs no reference")
        if self.attention_length < self.row_length:
            raise ValueError(
                f"packing.attention_length {self.attention_length} is less than packing.row_length, {self.row_length}"
            )
        if self.shares_prefixes and self.task == "sft":
            raise ValueError("packing.attention_length is for task preference: only pairs and triples share tokens")
        each = self.sequences_per_example
        # With prefix sharing an example may compute fewer tokens; how many is known only from the data.
        limits = {"row_length": 1 if self.shares_prefixes else each, "attention_length": each}
        for name, sequences in limits.items():
            length, needed = getattr(self, name), sequences * self.max_length
            if length >= needed:
                continue
            raise ValueError(
                f"packing.{name} {length} cannot hold a whole example: task {self.task} with "
                f"max_length {self.max_length} needs {needed}"
            )
        if self.prompt_limit >= self.max_length:
            raise ValueError(f"max_prompt_length {self.prompt_limit} leaves no room in max_length {self.max_length}")
        return self


class EvaluateConfig(ConfigModel):
    """Greedy answers of one or more models to held-out prompts, judged by the data pipeline's scorers."""

    models: dict[str, Location] = Field(min_length=1)
    """Name in the results (`base`, `sft`, `dpo`) -> Hugging Face directory or Hub id, or the `output_dir` of a run."""
    prompts: Location
    """JSON lines or Parquet with the data pipeline's prompt columns: id, dataset, domain, messages, answer, tests."""
    scoring: Location
    """A data pipeline config; `reward` and `verifier` of its `domains` judge the answers."""
    output_dir: Location
    """Where `results.json` and the judged answers go."""
    chat: ChatConfig = ChatConfig()
    """How prompts become text."""
    max_new_tokens: PositiveInt = 2048
    """Limit of an answer; a longer one is cut."""
    batch_size: PositiveInt = 64
    """Prompts decoded together, rounded up to a power of two."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of parameters and computation."""


def _by_its_name(section: Any) -> Any:
    """The section `method` of a merge as the model of the method that it names; it may be that name alone."""
    values = {"name": section} if isinstance(section, str) else section
    if not isinstance(values, dict):
        return values
    name = values.get("name")
    if name not in METHODS:
        raise ValueError(f"name {name!r} is none of {', '.join(METHODS)}")
    return find_method(name).model_validate_json(json.dumps(values, default=str), strict=True)


class MergeConfig(ConfigModel):
    """Models of one architecture and vocabulary, trained from one pivot, made into one without training."""

    pivot: Location
    """The model that all targets were trained from: directory or Hub id of a Hugging Face checkpoint."""
    targets: list[Location] = Field(min_length=1)
    """The models to merge, as `pivot`; of a training run, what `fusejax export` makes of it. Their order does not
    matter."""
    method: Annotated[MergeMethod, SerializeAsAny(), BeforeValidator(_by_its_name)]
    """`name` names a file of `fusejax/merging/methods/`; the other keys are that method's own."""
    output: Location
    """The directory to make, with the pivot's tokenizer; must not exist, or be empty."""
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """Of the tensors written. Default: the pivot's. All arithmetic is in float32."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "MergeConfig":
        self.method.check(len(self.targets))
        return self
