"""The results as Markdown: `table.md`, and what the command prints."""

from collections.abc import Sequence

from data_pipeline.benchmarks.intervals import Interval
from data_pipeline.benchmarks.results import TRUNCATED, Pair, Result

SIGN = "~"
"""Before a published number that is not of the same thing."""


def markdown(results: Sequence[Result], pairs: Sequence[Pair], left_out: Sequence[str], profile: str) -> str:
    """The whole file.

    Args:
      results: of all models and benchmarks, in the order of tables.
      pairs: of models that are compared.
      left_out: lines on benchmarks that were not run.
      profile: how models were asked.
    """
    notes = Notes()
    parts = ["# Benchmarks", f"Profile `{profile}`. Intervals are 95 %, by bootstrap over items."]
    parts.append(_table(*scores(results, notes)))
    if notes.texts:
        parts.append("\n".join(f"{place}. {text}" for place, text in enumerate(notes.texts, 1)))
    if rows := differences(results, notes):
        parts += ["## Ours less the published numbers", _table(*rows)]
    if pairs:
        parts += ["## Item by item", _table(*compared(pairs, results))]
    parts += ["## Answers", _table(*answers(results))]
    if lines := warnings(results):
        parts.append("\n".join(f"- {line}" for line in lines))
    if any(result.held is not None for result in results):
        parts += ["## Items that the training prompts held", _table(*held(results))]
    if left_out:
        parts += ["## Not run", "\n".join(f"- {line}" for line in left_out)]
    return "\n\n".join(parts) + "\n"


class Notes:
    """Footnotes, each text once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, text: str, caveats: Sequence[str]) -> str:
        """A published number, with the sign and the numbers of its footnotes."""
        if not caveats:
            return text
        numbers = [self._numbers.setdefault(each, len(self._numbers) + 1) for each in caveats]
        return f"{SIGN}{text} ({', '.join(map(str, numbers))})"

    @property
    def texts(self) -> list[str]:
        """In the order of their numbers, from 1."""
        return list(self._numbers)


def scores(results: Sequence[Result], notes: Notes) -> tuple[list[str], list[list[str]]]:
    """Every benchmark's row: each model's score, and the published ones."""
    beside = {result.model: result.beside.model for result in results if result.beside}
    models = dict.fromkeys(result.model for result in results)
    header = [""]
    for model in models:
        header += [model, f"{beside[model]} (published)"] if model in beside else [model]
    found = {(result.benchmark, result.model): result for result in results}
    rows = []
    for name in dict.fromkeys(result.benchmark for result in results):
        mine = [found[name, model] for model in models]
        row = [mine[0].title + (f", judged by {mine[0].judge}" if mine[0].judge else "")]
        for result in mine:
            row.append(shown(result.score, result.scale))
            if result.beside is not None:
                row.append(notes.mark(number(result.beside.value, result.scale), result.caveats))
            elif result.model in beside:
                row.append("")
        rows.append(row)
    return header, rows


def differences(results: Sequence[Result], notes: Notes) -> tuple[list[str], list[list[str]]] | None:
    """Every difference from a published number that may be taken, marked as that number is; None if there are none."""
    rows = [
        [
            result.title,
            result.model,
            result.beside.model,
            notes.mark(signed(*result.beside.difference, result.scale), result.caveats),
        ]
        for result in results
        if result.beside is not None and result.beside.difference is not None
    ]
    return (["", "model", "published", "difference"], rows) if rows else None


def compared(pairs: Sequence[Pair], results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Every paired comparison."""
    about = {result.benchmark: result for result in results}
    rows = []
    for pair in pairs:
        found, result = pair.difference, about[pair.benchmark]
        change = signed(found.value, found.low, found.high, result.scale)
        rows.append([result.title, pair.model, pair.other, change, f"{found.p:.3g}", f"{found.items:,}"])
    return ["", "model", "against", "difference", "p", "items"], rows


def answers(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """What became of the answers."""
    kinds = list(results[0].counts) if results else []
    rows = [
        [
            result.title,
            result.model,
            f"{result.items:,}",
            f"{result.answers:,}",
            f"{result.tokens:,.0f}",
            *(f"{result.counts[kind]:,}" for kind in kinds),
        ]
        for result in results
    ]
    return ["", "model", "items", "answers", "tokens each", *kinds], rows


def warnings(results: Sequence[Result]) -> list[str]:
    """A line for each result that is worth less than it looks: many answers were cut, or a judge gave no grade, or
    letters in place of probabilities."""
    lines = []
    for result in results:
        where, total = f"{result.model}, {result.title}", f"{result.answers:,} answers"
        if result.counts["truncated"] > TRUNCATED * result.answers:
            lines.append(
                f"{where}: {result.counts['truncated']:,} of {total} were cut at the limit: its score is too low"
            )
        if result.counts["ungraded"]:
            lines.append(f"{where}: {result.counts['ungraded']:,} of {total} have no grade: its score is of the others")
        if share := result.details.get("binarised"):
            lines.append(f"{where}: {share:.0%} of the preferences are letters, since the judge gave no probabilities")
    return lines


def held(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            result.title,
            result.model,
            f"{result.held:,} of {result.items:,}",
            shown(result.score, result.scale),
            "" if result.without_held is None else shown(result.without_held, result.scale),
        ]
        for result in results
        if result.held is not None
    ]
    return ["", "model", "held", "score", "without them"], rows


def number(value: float, scale: float) -> str:
    """A score as tables show it: a decimal of a hundred, two of ten.

    >>> number(65.386, 100), number(8.5375, 10), number(float("nan"), 100)
    ('65.4', '8.54', '–')
    """
    return "–" if value != value else f"{value:.{1 if scale > 10 else 2}f}"


def shown(score: Interval, scale: float) -> str:
    return f"{number(score.value, scale)} [{number(score.low, scale)}, {number(score.high, scale)}]"


def signed(value: float, low: float, high: float, scale: float) -> str:
    digits = 1 if scale > 10 else 2
    if low != low:
        return f"{value:+.{digits}f} [–, –]"
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
