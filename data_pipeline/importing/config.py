"""The configuration of an import as typed, validated values."""

from typing import Any, Literal

import pydantic
from pydantic import Field, PositiveFloat, PositiveInt

from data_pipeline.config import OverlapConfig, RowsConfig, WriteConfig
from data_pipeline.importing import known
from fusejax.common.cli import ConfigModel, Location


class ImportColumns(ConfigModel):
    """Our column name -> the file's column name. What is not set here is found by the names of the usual formats."""

    id: str | None = None
    """Names the record. Default: the column `id`; where there is none, or a blank one, a hash of the content."""
    messages: str | None = None
    """A list of turns: `{role, content}`, or ShareGPT's `{from, value}`. Default: `messages` or `conversations`."""
    prompt: str | None = None
    """What is asked: the text of a user turn, or a list of turns. Default: `prompt` or `instruction`."""
    input: str | None = None
    """What the instruction is about: follows it after a blank line. Default: `input` beside `instruction`."""
    system: str | None = None
    """The text of a system turn. Default: `system` or `system_prompt`."""
    completion: str | None = None
    """The answer: its text, or its turns. Default: `completion`, or `output` beside `instruction`."""
    chosen: str | None = None
    """The better answer: its text, its turns, or the whole conversation. Default: `chosen`."""
    rejected: str | None = None
    """The worse answer. Default: `rejected`."""
    source_chosen: str | None = None
    """Of a triple: the source model's answer. Default: `source_chosen`."""
    target_chosen: str | None = None
    """Of a triple: the target's better answer. Default: `target_chosen`."""
    chosen_score: str | None = None
    """The better answer's score. Default: `score_chosen`, `chosen_score` and the like with `rating` or `reward`."""
    rejected_score: str | None = None
    """The worse answer's score."""
    dataset: str | None = None
    """The data set's name, where it differs from row to row. Default: `dataset`."""
    domain: str | None = None
    """The domain, where it differs from row to row. Default: `domain`."""
    source_model: str | None = None
    """Who answered. Default: `source_model`."""
    weight: str | None = None
    """How much the loss counts an example or a pair: a number above 0. Default: `weight`; where there is none, 1."""


class ImportDataConfig(RowsConfig):
    split: str = "train"
    """Split of a Hub data set. Default: train, or that of pairs where a known data set has several."""
    dataset: str | None = None
    """The data set's name in records and reports. Default: what the row says; else the file's name or the Hub id."""
    domain: str | None = None
    """The domain of all rows. Default: what the row says; else chat."""
    source_model: str | None = None
    """Who answered. Default: what the row says; else unknown."""
    kind: Literal["sft", "dpo", "wrpo"] | None = None
    """What the rows become, SFT examples, pairs or triples, where their columns would serve for several."""
    adapter: str | None = None
    """Hub id of the known data set of which this is a copy. Default: `path`, if it is one and no columns are named."""
    columns: ImportColumns = ImportColumns()
    """The file's column names, where they differ from the usual ones."""
    limit: PositiveInt | None = None
    """At most this many records, drawn by the seed."""
    weight: PositiveFloat | None = None
    """Share in the mixture of its kind: as many records are drawn as the data sets allow at these ratios. All data sets
    have a weight, or none."""
    eval: bool = False
    """Whether all of it is for evaluation; records elsewhere with the same prompt then are, too."""

    @property
    def known(self) -> known.Known | None:
        """How the rows are read, if the data set is known here."""
        name = self.adapter or (self.path if self.columns == ImportColumns() else None)
        return known.find(name, self.split, self.kind) if name else None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _split_of_the_known(cls, values: Any) -> Any:
        if isinstance(values, dict) and "split" not in values:
            found = known.KNOWN.get(str(values.get("adapter") or values.get("path")))
            return {**values, "split": found.split} if found else values
        return values

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "ImportDataConfig":
        if self.adapter is not None and self.adapter not in known.KNOWN:
            raise ValueError(f"adapter {self.adapter!r} is none of {', '.join(known.KNOWN)}")
        if self.adapter is not None and self.columns != ImportColumns():
            raise ValueError("an adapter knows the columns: name it or them")
        if self.known and self.kind not in (None, self.known.kind):
            read = f"{self.adapter or self.path} is read as {self.known.kind}, not as {self.kind}"
            raise ValueError(f"kind: {read}: leave it out, or name the columns instead of the adapter")
        if self.eval and self.weight is not None:
            raise ValueError("a data set for evaluation has no weight in the mixture")
        return self


class ImportConfig(ConfigModel):
    output_dir: Location
    """Where the shards are written, as `sft/`, `dpo/` and `wrpo/`."""
    seed: int = 0
    """Seed of every random choice: limits, weights, the evaluation split, the order."""
    data: list[ImportDataConfig] = Field(min_length=1)
    """Data sets to import."""
    overlap: OverlapConfig = OverlapConfig()
    """What to leave out besides exact copies: near copies, and what overlaps with evaluation sets."""
    write: WriteConfig = WriteConfig()
    """How shards are written."""

    @pydantic.model_validator(mode="after")
    def _all_weighted_or_none(self) -> "ImportConfig":
        trained = [entry for entry in self.data if not entry.eval]
        without = [entry.path for entry in trained if entry.weight is None]
        if 0 < len(without) < len(trained):
            raise ValueError(f"data: {without[0]} has no weight, but others have: give all a weight, or none")
        if not trained:
            raise ValueError("data: all of it is for evaluation")
        return self
