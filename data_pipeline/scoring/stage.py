"""Stage `score`: every answer in `samples/` gets a reward and a verdict, in `scores/{source}.parquet`.

It reads `prompts.parquet` and every file of `samples/`, also those that another program wrote there: the columns
prompt_id, source, sample_index, text and finish_reason are enough, and thoughts in their texts are cut off here.
Answers that came with a reward or a verdict keep it where their domain names nothing that gives one.
"""

import functools
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl
from etils import epath

from data_pipeline import stage_files
from data_pipeline.config import PipelineConfig
from data_pipeline.prompts.stage import SCHEMA as PROMPTS_SCHEMA
from data_pipeline.prompts.stage import check_domains
from data_pipeline.sampling import given_scores, reasoning
from data_pipeline.scoring import scorers
from data_pipeline.scoring.code.scorer import CodeScorer
from data_pipeline.scoring.scorer import Item, Score, Scorer
from fusejax.common.cli import UserError
from fusejax.common.files import write_text
from fusejax.common.progress import Progress

COLUMNS = pl.Schema(
    [
        ("reward", pl.Float64()),
        ("verdict", pl.String()),
        ("extracted", pl.String()),
        ("detail", pl.String()),
        ("objectives", pl.List(pl.Float64())),
    ]
)
NEEDED = ("prompt_id", "source", "sample_index", "text", "finish_reason")
CHUNK = 8192
"""Answers per part file: the most that a killed run loses."""

Scorers = dict[str, tuple[Scorer | None, Scorer | None]]
"""Domain -> what gives the reward, and what the verdict."""
Chunk = tuple[int, pl.DataFrame, dict[str, dict[str, Any]]]
"""The number of its first row in the file, its rows, and their prompts' rows by id."""


def run(config: PipelineConfig) -> None:
    """Writes `scores/{source}.parquet` for each file of `samples/`, and `{source}.json` with the sandbox's tier.

    Raises:
      UserError: no prompts, no samples, a column is missing, a prompt is of no domain of the config, an import path
        leads nowhere, or there is no such reward model.
    """
    output = epath.Path(config.output_dir)
    prompts_path = output / "prompts.parquet"
    prompts = stage_files.read_parquet(prompts_path, list(PROMPTS_SCHEMA), made_by="prompts")
    files = sorted((output / "samples").glob("*.parquet"))
    if not files:
        raise UserError(f"{output / 'samples'}: no *.parquet there; run the stage 'sample' first")
    check_domains(config, prompts["domain"])
    judges = scorers.build(config, prompts["domain"])
    kinds = _fingerprints(judges)
    rows = {row["id"]: row for row in prompts.iter_rows(named=True)}
    for file in files:
        stage_files.check_parquet(file, NEEDED, made_by="sample")
        inputs = stage_files.fingerprint(kinds, list(COLUMNS), prompts_path, file)
        final = output / "scores" / file.name
        parts = final.parent / ".parts" / f"{file.stem}-{inputs[:16]}"
        work = _Work(config, file, final, parts, rows, judges)
        stage_files.once(output, f"score {file.stem}", inputs, [final], work.run)


def sandboxes(output: epath.Path) -> dict[str, str | None]:
    """Source -> the tier in which its programs ran, None where it has none; what `score` wrote in `output`."""
    files = sorted((output / "scores").glob("*.json"))
    return {file.stem: json.loads(file.read_text())["sandbox"] for file in files}


class _Work:
    """The scoring of one file, chunk by chunk; part files of a killed run are taken as they are."""

    def __init__(
        self,
        config: PipelineConfig,
        file: epath.Path,
        final: epath.Path,
        parts: epath.Path,
        prompts: dict[str, dict[str, Any]],
        judges: Scorers,
    ):
        self._config = config
        self._file, self._final, self._parts = file, final, parts
        self._prompts, self._judges = prompts, judges

    def run(self) -> str:
        samples = stage_files.read_parquet(self._file, NEEDED, made_by="sample")
        samples = _without_thoughts(samples.drop([column for column in COLUMNS if column in samples.columns]))
        if samples.is_empty():
            raise UserError(f"{self._file}: empty data set")
        parts = {start: self._parts / f"{start:010d}.parquet" for start in range(0, len(samples), CHUNK)}
        done = sum(len(samples[start : start + CHUNK]) for start, part in parts.items() if part.exists())
        progress = Progress(f"score {self._file.stem}", len(samples), "answer", done=done)
        for start, scores in self._judged(samples, parts):
            stage_files.write_parquet(scores, parts[start])
            progress.add(len(scores))
        progress.close()
        scores = pl.concat([stage_files.read_parquet(part, list(COLUMNS), made_by="score") for part in parts.values()])
        tiers = {pair[1].sandbox for pair in self._judges.values() if isinstance(pair[1], CodeScorer)}
        write_text(self._final.with_suffix(".json"), json.dumps({"sandbox": next(iter(tiers), None)}))
        asked = samples.drop(given_scores.SCHEMA.names(), strict=False)
        stage_files.write_parquet(pl.concat([asked, scores], how="horizontal"), self._final)
        self._parts.rmtree(missing_ok=True)
        verdicts = dict(scores["verdict"].fill_null("none").value_counts().sort("verdict").iter_rows())
        unscored = int((~scores["reward"].is_finite()).sum())
        missing = self._without_reward(samples, scores)
        return (
            f"{len(scores):,} answers; verdicts {verdicts}"
            + (f"; {unscored:,} rewards not finite" if unscored else "")
            + (f"; no reward {missing}" if missing else "")
        )

    def _without_reward(self, samples: pl.DataFrame, scores: pl.DataFrame) -> dict[str, int]:
        """Reason -> answers that got no reward where the config names what gives one."""
        unasked = [name for name, prompt in self._prompts.items() if not self._judges[prompt["domain"]][0]]
        if "given_reward" in samples.columns:
            unasked = []
        expected = ~samples["prompt_id"].is_in(pl.Series(unasked, dtype=pl.String))
        missing = scores.filter(scores["reward"].is_null() & expected)
        reasons = missing["detail"].fill_null("no_reason").str.extract("^([^:;]*)").value_counts().sort("detail")
        return dict(reasons.iter_rows())

    def _judged(self, samples: pl.DataFrame, parts: dict[int, epath.Path]) -> Iterator[tuple[int, pl.DataFrame]]:
        """The scores of the chunks without a part file, as they get ready."""

        def left() -> list[Chunk]:
            chunks = [(start, samples[start : start + CHUNK]) for start, part in parts.items() if not part.exists()]
            return [(start, chunk, self._prompts_of(chunk)) for start, chunk in chunks]

        if self._config.engine == "local":
            return _judge(self._judges, *left())
        from data_pipeline import cluster

        ray = self._config.ray
        make = functools.partial(_work, self._config, _fingerprints(self._judges))
        return cluster.results(ray, ray.score, f"score {self._file.stem}", make, left)

    def _prompts_of(self, samples: pl.DataFrame) -> dict[str, dict[str, Any]]:
        return {name: self._prompts[name] for name in samples["prompt_id"].unique() if name in self._prompts}


def _without_thoughts(samples: pl.DataFrame) -> pl.DataFrame:
    """Cuts off the thoughts in a table of another program; the stage `sample` has done so in its own."""
    if "engine" in samples.columns or "reasoning" in samples.columns:
        return samples
    cut = reasoning.cut(samples.with_columns(pl.col("text", "finish_reason").cast(pl.String)))
    return samples if cut["reasoning"].null_count() == len(cut) else cut


def _fingerprints(judges: Scorers) -> dict[str, list[str | None]]:
    return {domain: [judge.fingerprint if judge else None for judge in pair] for domain, pair in judges.items()}


def _work(
    config: PipelineConfig, expected: dict[str, list[str | None]]
) -> Callable[[Chunk], Iterator[tuple[int, pl.DataFrame]]]:
    """Builds the scorers on the machine that calls it; returns a function that judges a chunk."""
    judges = scorers.build(config, expected, config.scorers.workers or max(1, int(config.ray.score.cpus)))
    for domain, found in _fingerprints(judges).items():
        if found != expected[domain]:
            problem = f"would judge differently on {socket.gethostname()} than on the machine that drives"
            name = "reward" if found[0] != expected[domain][0] else "verifier"
            raise UserError(f"{config.key(domain, name)}: {problem}; both need the same code and files")
    return functools.partial(_judge, judges)


def _judge(judges: Scorers, *chunks: Chunk) -> Iterator[tuple[int, pl.DataFrame]]:
    for start, samples, prompts in chunks:
        scores: list[Score] = [Score(detail="no_such_prompt")] * len(samples)
        by_domain: dict[str, list[int]] = {}
        items: dict[int, Item] = {}
        rows = samples.rows(named=True)
        for index, sample in enumerate(rows):
            prompt = prompts.get(sample["prompt_id"])
            if sample["finish_reason"] == "error":
                scores[index] = Score(detail="not_sampled")
            elif prompt is not None:
                items[index] = Item(prompt, sample["text"] or "")
                by_domain.setdefault(prompt["domain"], []).append(index)
        for domain, indices in by_domain.items():
            batch = [items[index] for index in indices]
            reward, correctness = judges[domain]
            rewards = reward.score(batch) if reward else [_given_reward(rows[index]) for index in indices]
            verdicts = (
                correctness.score(batch)
                if correctness
                else [_given_verdict(rows[index]) or score for index, score in zip(indices, rewards, strict=True)]
            )
            for index, rewarded, judged in zip(indices, rewards, verdicts, strict=True):
                # If there is no reward, the reason for that comes first: it is why the answer was lost.
                both = (judged, rewarded) if rewarded.reward is not None else (rewarded, judged)
                details = dict.fromkeys(score.detail for score in both if score.detail)
                detail = _storable("; ".join(details) or None)
                scores[index] = Score(
                    rewarded.reward, judged.verdict, _storable(judged.extracted), detail, rewarded.objectives
                )
        yield start, pl.DataFrame([vars(score) for score in scores], schema=COLUMNS)


def _given_reward(sample: dict[str, Any]) -> Score:
    return Score(reward=sample.get("given_reward"), detail=sample.get("given_reward_problem"))


def _given_verdict(sample: dict[str, Any]) -> Score | None:
    """None where answers come without verdicts: then a reward function may give one."""
    if "given_verdict" not in sample:
        return None
    return Score(verdict=sample["given_verdict"], detail=sample["given_verdict_problem"])


def _storable(text: str | None) -> str | None:
    """Without lone surrogates, which an error's message can hold and UTF-8 cannot."""
    return None if text is None else text.encode(errors="replace").decode()
