"""The results as one HTML page, `report.html`, made of what the pipeline's report is made of."""

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.benchmarks import table
from data_pipeline.benchmarks.results import Pair, Result
from data_pipeline.report import page
from data_pipeline.report.charts import COLORS, GREY, Bar, Chart, Part

TEMPLATES = Path(__file__).parent / "templates"


def report(results: Sequence[Result], pairs: Sequence[Pair], left_out: Sequence[str], profile: str) -> str:
    """The whole page; the arguments are those of `table.markdown`."""
    notes = table.Notes()
    scores = table.scores(results, notes)
    opening = _section("", [f"Profile {profile}. Intervals are 95 %, by bootstrap over items."])
    sections = [_section("Scores", charts=charts(results), rows=scores, notes=notes.texts)]
    if rows := table.differences(results, notes):
        sections.append(_section("Ours less the published numbers", rows=rows))
    if pairs:
        sections.append(_section("Item by item", rows=table.compared(pairs, results)))
    sections.append(_section("Answers", table.warnings(results), rows=table.answers(results)))
    if any(result.held is not None for result in results):
        sections.append(_section("Items that the training prompts held", rows=table.held(results)))
    if left_out:
        sections.append(_section("Not run", left_out))
    return page.render("Benchmarks", opening, sections, TEMPLATES)


def charts(results: Sequence[Result]) -> list[Chart]:
    """A chart for each benchmark: our scores as bars with their intervals in words, published ones in grey."""
    models = list(dict.fromkeys(result.model for result in results))
    found = []
    for name in dict.fromkeys(result.benchmark for result in results):
        mine = [result for result in results if result.benchmark == name]
        scale, judge = mine[0].scale, mine[0].judge
        bars = [
            _bar(
                each.model,
                each.score.value,
                table.shown(each.score, scale),
                scale,
                COLORS[models.index(each.model) % len(COLORS)],
            )
            for each in mine
        ]
        published = {each.beside.model: each.beside.value for each in mine if each.beside is not None}
        bars += [
            _bar(f"{model} (published)", value, table.number(value, scale), scale, GREY)
            for model, value in published.items()
        ]
        found.append(Chart(mine[0].title + (f", judged by {judge}" if judge else ""), bars))
    return found


def _bar(label: str, value: float, text: str, scale: float, color: str) -> Bar:
    share = min(max(value / scale, 0.0), 1.0) if value == value else 0.0
    return Bar(label, text, [Part(share, color)] if share else [])


def _section(
    title: str,
    lines: Sequence[str] = (),
    *,
    charts: Sequence[Chart] = (),
    rows: tuple[list[str], list[list[str]]] | None = None,
    notes: Sequence[str] = (),
) -> page.Section:
    shown = page.Table(*rows) if rows else None
    return page.Section(title, "table.html", {"lines": lines, "charts": charts, "table": shown, "notes": notes})
