"""What models answer: every item of every benchmark, turn by turn, each answer kept under its key for good.

All benchmarks are asked of a model at once, so that it is loaded once, and so that an engine has enough to do. A killed
run goes on where it was. An answer's key is the hash of the model's revision, the prompt's token ids (or messages), the
parameters and the sample's index; so another benchmark, metric or limit asks nothing twice. The seed is a hash of the
same prompt and index.
"""

import contextlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
from etils import epath

from data_pipeline import stage_files
from data_pipeline.benchmarks.benchmark import Answer, Asked, Benchmark, Family, Item, Prompt
from data_pipeline.benchmarks.config import BenchmarkConfig
from data_pipeline.sampling import answer_keys, checkpoint, reasoning
from data_pipeline.sampling import stage as sample
from data_pipeline.sampling.answer_keys import SamplePlan
from data_pipeline.sampling.answer_store import AnswerStore
from data_pipeline.sampling.backends.opening import open_sampler
from data_pipeline.sampling.chat import Refused
from data_pipeline.sampling.progress import Progress
from data_pipeline.sampling.sampler import Request, Sampler
from fusejax.common.cli import UserError, note

STORED = pl.Schema(
    {
        "key": pl.String,
        "seed": pl.Int64,
        "text": pl.String,
        "finish_reason": pl.String,
        "error": pl.String,
        "prompt_tokens": pl.Int64,
        "completion_tokens": pl.Int64,
        "max_new_tokens": pl.Int64,
        "engine": pl.String,
        "seconds": pl.Float64,
    }
)
SOMETIMES = pl.Schema({"reasoning": pl.String()})
_FAMILIES: Mapping[str, Family] = {"llama": "llama", "qwen2": "qwen", "qwen3": "qwen", "gemma2": "gemma"}
"""A checkpoint's `model_type` -> its family."""


@dataclass(frozen=True)
class Question:
    """One answer that is wanted."""

    benchmark: Benchmark
    item: Item
    index: int
    asked: Asked


@dataclass
class Said:
    """What a question has been answered so far."""

    texts: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    tokens: int = 0
    error: str | None = None


@contextlib.contextmanager
def named(model: str) -> Iterator[None]:
    """Has errors about the source that a model is to the samplers name it as the configuration does."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(f"sources: {model}", f"models: {model}")) from error


class Asker:
    """One model, and what it takes to ask it."""

    def __init__(self, config: BenchmarkConfig, name: str):
        """Finds the model and loads its tokenizer.

        Raises:
          UserError: there is no such model, or it has no chat template; the profile asks for what it is not.
        """
        self.name = name
        self._config, self._pipeline = config, config.pipeline()
        self.source = next(source for source in self._pipeline.sources if source.name == name)
        chat = self.source.chat_server is not None
        weights = self.source.server is None
        self._directory = None if chat else checkpoint.locate(self.source.model, self.source.revision, weights=weights)
        with named(name):
            self._tokenizer = sample.tokenizer_of(self._pipeline, self.source, self._directory)
        self.family = config.models[name].family or _family(self._directory)
        if config.profile == "fusechat3" and (chat or self.family == "other"):
            why = "a chat server renders prompts itself" if chat else "its scripts know Llama, Qwen and Gemma alone"
            raise UserError(f"models: {name}: the profile fusechat3 cannot be had: {why}")
        self._common = answer_keys.sampling_parameters(self._pipeline, self.source, self._directory)
        self.revision = str(self._common["revision"])

    @property
    def folder(self) -> epath.Path:
        """Where the answers are kept."""
        return epath.Path(self._config.output_dir) / "answers" / self.name

    def questions(self, benchmark: Benchmark, items: Iterable[Item]) -> list[Question]:
        """One for each answer that the benchmark wants of the model."""
        found = []
        samples = self._config.chosen[benchmark.name].samples
        for item in items:
            asked = benchmark.asked(item, self.family, self._config.profile)
            found += [Question(benchmark, item, index, asked) for index in range(samples or asked.samples)]
        return found

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """The answers, in the order of the questions.

        Raises:
          UserError: the model cannot be loaded or asked.
        """
        said = [Said() for _ in questions]
        sampler: Sampler | None = None
        with named(self.name), AnswerStore(self.folder, STORED, SOMETIMES) as store:
            try:
                for turn in range(max((question.benchmark.turns for question in questions), default=0)):
                    keys, requests = self.requests(questions, said, turn)
                    missing = len(requests.keys() - store.keys)
                    if missing:
                        note(
                            f"benchmark {self.name}: turn {turn + 1}: {missing:,} of {len(requests):,} answers to make"
                        )
                        sampler = sampler or self._open()
                        self._fill(sampler, requests, store, missing)
                    self._read(store.table(), requests, keys, said)
            finally:
                if sampler is not None:
                    sampler.close()
        return [_answer(each, so_far) for each, so_far in zip(questions, said, strict=True)]

    def requests(
        self, questions: Sequence[Question], said: Sequence[Said], turn: int
    ) -> tuple[list[str | None], dict[str, Request]]:
        """The key of each question's request in a turn, None where there is none; and the requests by key.

        A prompt that the model does not take leaves its error in `said`.
        """
        keys: list[str | None] = []
        requests: dict[str, Request] = {}
        kinds: dict[Asked, dict[str, Any]] = {}
        rendered: dict[tuple[str, str], tuple[tuple[int, ...], tuple[dict[str, str], ...]] | str] = {}
        for question, so_far in zip(questions, said, strict=True):
            benchmark, item = question.benchmark, question.item
            if turn >= benchmark.turns or so_far.error is not None:
                keys.append(None)
                continue
            # Samples of one item share their first prompt; later ones depend on what was said.
            place = (benchmark.name, item.id) if turn == 0 else (benchmark.name, f"{item.id}\0{question.index}")
            if place not in rendered:
                prompt = benchmark.prompt(item, self.family, self._config.profile, so_far.texts)
                rendered[place] = self._rendered(benchmark, prompt)
            found = rendered[place]
            if isinstance(found, str):
                so_far.error = found
                keys.append(None)
                continue
            ids, messages = found
            asked = question.asked
            if asked not in kinds:
                kinds[asked] = answer_keys.kind_of(self.source, self._common | asdict(asked.sampling))
            limit = min(asked.max_tokens, self._tokenizer.context - len(ids)) if self._tokenizer else asked.max_tokens
            asked_for = stage_files.fingerprint(messages or ids)
            index = str(question.index)
            seed = stage_files.stable_hash(self._config.seed, "benchmark", asked_for, index)
            key = stage_files.fingerprint(kinds[asked], asked_for, limit, index, seed)
            requests[key] = Request(key, ids, seed, limit, asked.sampling, messages)
            keys.append(key)
        return keys, requests

    def _rendered(
        self, benchmark: Benchmark, prompt: Prompt
    ) -> tuple[tuple[int, ...], tuple[dict[str, str], ...]] | str:
        """Token ids, or messages behind a chat server; or why the model cannot be asked this."""
        if self._tokenizer is None:
            if prompt.prefix:
                problem = f"{benchmark.name} begins the answer itself, which needs a server of mode completions"
                raise UserError(f"models: {self.name}: {problem}")
            return (), prompt.messages
        try:
            if prompt.text:
                ids = self._tokenizer.encode_text(prompt.text + prompt.prefix, bos_again=prompt.bos_again)
            else:
                ids = self._tokenizer.encode(list(prompt.messages), prompt.prefix, bos_again=prompt.bos_again)
        except Refused as error:
            return str(error)
        return tuple(ids), ()

    def _open(self) -> Sampler:
        context = self._tokenizer.context if self._tokenizer else 0
        return open_sampler(self._pipeline, self.source, self._directory, context)

    def _fill(self, sampler: Sampler, requests: dict[str, Request], store: AnswerStore, missing: int) -> None:
        progress = Progress(f"benchmark {self.name}", len(requests) - missing, len(requests))
        plan = SamplePlan([], requests, {})
        lost = sample.ask(sampler, self.source, plan, {}, store, progress, threading.Event())
        if lost:
            problem = next(iter(lost.values()))
            raise UserError(
                f"models: {self.name}: {len(lost):,} requests got only malformed answers ({problem}); the others are "
                "kept, and the same command asks again"
            )

    def _read(
        self, table: pl.DataFrame, requests: Mapping[str, Request], keys: Sequence[str | None], said: Sequence[Said]
    ) -> None:
        rows: dict[str, dict[str, Any]] = {}
        # Benchmarks end their prompts in different ways: with a thought that is open, or with text after it.
        opened: dict[str, list[str]] = {}
        for name, request in requests.items():
            opened.setdefault(self._tokenizer.opened(request.prompt) if self._tokenizer else "", []).append(name)
        for tag, those in opened.items():
            part = reasoning.cut(table.filter(pl.col("key").is_in(those)), tag)
            rows |= {row["key"]: row for row in part.iter_rows(named=True)}
        for key, so_far in zip(keys, said, strict=True):
            if key is None:
                continue
            row = rows[key]
            so_far.texts += (row["text"] or "",)
            so_far.reasons += (row["finish_reason"],)
            so_far.tokens += row["completion_tokens"]
            so_far.error = row["error"]


def _answer(question: Question, said: Said) -> Answer:
    """What was said; a turn that never came is an error with no text."""
    missing = question.benchmark.turns - len(said.texts)
    reasons = (*said.reasons, *["error"] * missing)
    return Answer(question.item, question.index, (*said.texts, *[""] * missing), reasons, said.tokens)


def _family(directory: Path | None) -> Family:
    if directory is None:
        return "other"
    return _FAMILIES.get(json.loads((directory / "config.json").read_text()).get("model_type", ""), "other")
