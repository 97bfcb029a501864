"""The judged answers: from a clone of AlpacaEval's repository, or from a file in the form that this makes of it."""

import gzip
import json
from pathlib import Path

from fusejax.common.cli import UserError, one_line
from fusejax.common.files import replacing

MODELS = (
    "claude-2.1",
    "FuseChat-Llama-3.2-1B-Instruct",
    "gemma-2b-it",
    "gpt-3.5-turbo-1106_verbose",
    "Mixtral-8x7B-Instruct-v0.1_concise",
    "Qwen-14B-Chat",
)
"""As AlpacaEval calls them. Each has its judged answers in `results/MODEL/` of the repository."""
ANNOTATIONS = "weighted_alpaca_eval_gpt4_turbo/annotations.json"


def prepare(source: Path, target: Path) -> None:
    """Writes `target`, gzipped JSON lines with one answer each: dataset, prompt, source_model, response, preference.

    `preference` is the probability, by GPT-4, that the answer beats the baseline's; AlpacaEval counts it from 1 to 2.

    Args:
      source: a clone of tatsu-lab/alpaca_eval, or a file that is as `target` shall be, gzipped or not.

    Raises:
      UserError: no such file or folder, or not what is expected there.
    """
    if source.is_dir():
        content = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in _from_clone(source)).encode()
    elif source.is_file():
        with (gzip.open if source.suffix == ".gz" else open)(source, "rb") as file:
            content = file.read()
    else:
        raise UserError(f"--answers {source}: no such file or folder")
    with replacing(target) as file:
        file.write(gzip.compress(content, mtime=0))


def _from_clone(clone: Path) -> list[dict]:
    rows = []
    for model in MODELS:
        path = clone / "results" / model / ANNOTATIONS
        try:
            rows += [
                {
                    "dataset": judged["dataset"],
                    "prompt": judged["instruction"],
                    "source_model": model,
                    "response": judged["output_2"],
                    "preference": judged["preference"] - 1,
                }
                for judged in json.loads(path.read_text())
                if judged["preference"] is not None
            ]
        except FileNotFoundError:
            raise UserError(f"--answers {clone}: no clone of AlpacaEval: {path} is missing") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not AlpacaEval's annotations: {one_line(error)}") from None
    return rows
