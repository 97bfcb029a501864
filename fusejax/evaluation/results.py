"""From verdicts to a table of accuracies."""

import math
from collections.abc import Mapping

import polars as pl

Results = dict[str, dict[str, float]]
"""Model -> domain -> accuracy, with the mean over domains as `average`."""


def accuracies(scores: Mapping[str, pl.DataFrame]) -> Results:
    """The share of answers whose verdict is `correct`, by model and domain.

    Args:
      scores: by model, a table with the columns `domain` and `verdict`.

    Example:
      >>> frame = pl.DataFrame({"domain": ["math", "math", "code"], "verdict": ["correct", "wrong", None]})
      >>> accuracies({"base": frame})
      {'base': {'code': 0.0, 'math': 0.5, 'average': 0.25}}
    """
    results: Results = {}
    for model, frame in scores.items():
        correct = frame.with_columns(correct=pl.col("verdict").fill_null("") == "correct")
        by_domain = correct.group_by("domain").agg(pl.col("correct").mean()).sort("domain")
        results[model] = dict(by_domain.iter_rows())
        results[model]["average"] = sum(results[model].values()) / len(results[model])
    return results


def standard_error(scores: pl.DataFrame) -> float:
    """The standard error of one model's average, as the prompts are a random sample.

    Each domain's accuracy p over n prompts has variance p (1 - p) / n; the average over k domains has their sum / k^2.
    """
    correct = scores.with_columns(correct=pl.col("verdict").fill_null("") == "correct")
    domains = correct.group_by("domain").agg(p=pl.col("correct").mean(), n=pl.len())
    variance = (domains["p"] * (1 - domains["p"]) / domains["n"]).sum()
    return math.sqrt(variance) / len(domains)


def table(results: Results, errors: Mapping[str, float]) -> str:
    """The results as text: one line per model, accuracies in percent, the average with its standard error."""
    domains = [name for name in next(iter(results.values())) if name != "average"]
    width = max(12, *(len(name) + 2 for name in domains))
    lines = ["model".ljust(10) + "".join(name.rjust(width) for name in (*domains, "average"))]
    for model, values in results.items():
        cells = "".join(f"{100 * values[name]:.1f}".rjust(width) for name in domains)
        average = f"{100 * values['average']:.1f} ± {100 * errors[model]:.1f}"
        lines.append(model.ljust(10) + cells + average.rjust(width))
    return "\n".join(lines)
