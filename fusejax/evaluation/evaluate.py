"""The models of an evaluation, one after another: answers, verdicts, results."""

import json
import subprocess
import sys

import polars as pl
from etils import epath

from fusejax.common.cli import UserError, note
from fusejax.common.files import check_writable, local_copy, replacing, write_text
from fusejax.config import EvaluateConfig
from fusejax.evaluation.answers import answer, read_prompts
from fusejax.evaluation.results import Results, accuracies, standard_error
from fusejax.training.start import StartingModel


def evaluate(config: EvaluateConfig) -> tuple[Results, dict[str, float]]:
    """Answers every prompt with every model, has the answers scored, writes `results.json`.

    The data pipeline's `score` stage judges the answers, in a separate process because it needs packages that training
    does not. So answers are judged exactly as they were when the training data were selected. Answers and verdicts stay
    in `OUTPUT_DIR/answers/`.

    Returns:
      The results, and each model's standard error.

    Raises:
      UserError: the prompts or a model cannot be loaded, or the scoring fails.
    """
    output_dir = epath.Path(config.output_dir)
    judged = output_dir / "answers"
    # What can be wrong is found before the first answer: answering may take hours.
    check_writable(output_dir, "output_dir")
    if not epath.Path(config.scoring).is_file():
        raise UserError(f"scoring {config.scoring}: no such file")
    prompts = read_prompts(config.prompts)
    models = {name: StartingModel(source) for name, source in config.models.items()}
    with replacing(judged / "prompts.parquet") as file:
        prompts.write_parquet(file)
    for name, model in models.items():
        note(f"{name}: answering {len(prompts)} prompts with {model.source}")
        frame = answer(
            model,
            name,
            prompts,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size,
            dtype=config.dtype,
            folder=judged / "samples" / ".answers" / name,
            date=config.chat.date,
        )
        with replacing(judged / "samples" / f"{name}.parquet") as file:
            frame.write_parquet(file)
    _score(config.scoring, judged)
    scores = {name: _judged(judged, name, prompts) for name in config.models}
    results = accuracies(scores)
    write_text(output_dir / "results.json", json.dumps(results, indent=2) + "\n")
    return results, {name: standard_error(frame) for name, frame in scores.items()}


def _score(config: str, judged: epath.Path) -> None:
    command = [sys.executable, "-m", "data_pipeline", "score", "--config", config, f"output_dir={judged}"]
    status = subprocess.run(command, stdout=sys.stderr).returncode
    if status:
        raise UserError(f"scoring failed with status {status}: {' '.join(command)}")


def _judged(judged: epath.Path, name: str, prompts: pl.DataFrame) -> pl.DataFrame:
    with local_copy(judged / "scores" / f"{name}.parquet") as local:
        scores = pl.read_parquet(local)
    return prompts.select("id", "domain").join(scores, left_on="id", right_on="prompt_id", how="left")
