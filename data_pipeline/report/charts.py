"""Charts as plain data for the templates: bars as shares and colours, distributions and lines as inline SVG.

Titles, legends and the numbers of bars become HTML, so they wrap on a narrow screen and cover no data.
"""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Okabe and Ito's colours without the yellow, then Tol's: colour-blind readers can tell them apart too.
COLORS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#555555", "#882255", "#44AA99", "#999933",
    "#332288", "#AA4499",
)  # fmt: skip
GREY = "#9AA5B1"
# Text stays text, so it can be found and copied; ids do not change from run to run.
_SVG: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fusejax",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_WIDTH = 4.4
"""Inches, 422 pixels: letters nearly keep their size on a phone."""
_ROOM = 0.0175
"""Share of a bar's width that one digit inside it takes on a phone."""
_LABEL = 36
"""Most characters of a name inside an SVG, where text does not wrap."""


@dataclass(frozen=True)
class Part:
    """A piece of a bar."""

    share: float
    """Share of the whole width."""
    color: str
    text: str = ""
    """Inside, where there is room."""
    hint: str = ""
    """Shown when pointed at."""

    @property
    def ink(self) -> str:
        """Colour of the text inside."""
        return _ink(self.color)


@dataclass(frozen=True)
class Bar:
    """A horizontal bar with a line of text above it."""

    label: str
    number: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Chart:
    """What a template draws; without bars and SVG, there were no values."""

    title: str
    bars: Sequence[Bar] = ()
    svg: str = ""
    """Trusted markup, with all texts escaped."""
    legend: Mapping[str, str] = field(default_factory=dict)
    """Series -> colour."""
    words: Mapping[str, str] = field(default_factory=dict)
    """Series or label of a bar -> what it means, for those that need explaining."""


def bars(
    values: Mapping[str, int],
    *,
    title: str,
    colors: Mapping[str, str] | None = None,
    words: Mapping[str, str] | None = None,
) -> Chart:
    """Horizontal bars on one scale, the first on top, with their numbers.

    Args:
      values: label -> length.
      title: above the chart.
      colors: of bars that are not to have the common colour.
      words: label -> what it means.
    """
    most = max(values.values(), default=0)
    drawn = [
        Bar(name, f"{value:,}", [Part(value / most, (colors or {}).get(name, COLORS[0]))] if value else [])
        for name, value in values.items()
    ]
    return Chart(title, drawn, words=words or {})


def stacked_bars(
    table: Mapping[str, Mapping[str, int]],
    *,
    title: str,
    colors: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    words: Mapping[str, str] | None = None,
) -> Chart:
    """One bar per row of `table`, as shares of the row's sum; the numbers inside are counts.

    Args:
      table: row -> series -> count. A series without any count is not in the legend, but keeps its colour.
      title: above the chart.
      colors: of the series; others take those of `COLORS` by their place.
      labels: row -> text at its right instead of the sum.
      words: series -> what it means.
    """
    palette = _palette([name for row in table.values() for name in row], colors)
    seen = {name for row in table.values() for name, count in row.items() if count}
    drawn = []
    for label, row in table.items():
        total = sum(row.values())
        parts = []
        for name, count in row.items():
            share = count / total if total else 0
            if share:
                text = f"{count:,}"
                fits = share >= _ROOM * (len(text) + 1)
                parts.append(Part(share, palette[name], text if fits else "", f"{name}: {count:,} ({share:.1%})"))
        drawn.append(Bar(label, (labels or {}).get(label, f"{total:,}"), parts))
    legend = {name: color for name, color in palette.items() if name in seen}
    return Chart(title, drawn, legend=legend, words={name: (words or {}).get(name, "") for name in legend})


def histograms(
    series: Mapping[str, Sequence[float] | np.ndarray],
    *,
    title: str,
    xlabel: str,
    colors: Mapping[str, str] | None = None,
    filled: str | None = None,
    band: tuple[float | None, float | None] = (None, None),
) -> Chart:
    """Outlined histograms, as shares of each series, over common bins.

    A few values far from all others do not stretch the axis: the outermost bins count them, and the chart says so.

    Args:
      series: name -> values; those that are not finite are left out. An empty one is not drawn but keeps its colour.
      title: above the chart.
      xlabel: what is measured, with its unit.
      colors: of the series; others take those of `COLORS` by their place.
      filled: the series to draw as an area behind the others.
      band: bounds to shade between; None is no bound.
    """
    values = {name: np.asarray(data, float) for name, data in series.items()}
    values = {name: data[np.isfinite(data)] for name, data in values.items()}
    drawn = {name: data for name, data in values.items() if data.size}
    palette = _palette(series, colors)
    if not drawn:
        return Chart(title)
    edges, clipped = _edges(list(drawn.values()))
    with matplotlib.rc_context(_SVG):
        figure, axes = _axes(2.3)
        if band != (None, None):
            low, high = (edges[0] if band[0] is None else band[0]), (edges[-1] if band[1] is None else band[1])
            axes.axvspan(max(low, edges[0]), min(high, edges[-1]), color="#009E73", alpha=0.1, linewidth=0)
        for name, data in drawn.items():
            heights = np.histogram(np.clip(data, edges[0], edges[-1]), edges)[0] / data.size
            if name == filled:
                axes.stairs(heights, edges, color=palette[name], fill=True, alpha=0.45)
            else:
                axes.stairs(heights, edges, color=palette[name], linewidth=1.6)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(xlabel + ("; outermost bins hold all beyond" if clipped else ""))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        _plain_numbers(axes.xaxis)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
        return Chart(title, svg=_svg(figure), legend={name: palette[name] for name in drawn})


def ranges(
    series: Mapping[str, Sequence[float]], *, title: str, xlabel: str, colors: Mapping[str, str] | None = None
) -> Chart:
    """One box per series: line from 5 to 95 %, box from 25 to 75 %, mark at the median.

    Args:
      series: name -> values at 5, 25, 50, 75 and 95 %, all finite.
      title: above the chart.
      xlabel: what is measured, with its unit.
      colors: of the series; others take those of `COLORS` by their place.
    """
    if not series:
        return Chart(title)
    palette = _palette(series, colors)
    with matplotlib.rc_context(_SVG):
        figure, axes = _axes(0.55 + 0.4 * len(series))
        for place, (name, (p5, p25, p50, p75, p95)) in enumerate(series.items()):
            axes.plot([p5, p95], [place, place], color=palette[name], linewidth=1.5)
            axes.barh(place, p75 - p25, left=p25, height=0.34, color=palette[name])
            axes.plot([p50, p50], [place - 0.23, place + 0.23], color="#1f2933", linewidth=1.8)
            # Above its box: beside it, a long name would leave no room for the box.
            label = name if len(name) <= _LABEL else f"{name[: _LABEL - 1]}…"
            axes.text(0, place - 0.27, label, transform=axes.get_yaxis_transform(), va="bottom")
            axes.text(1, place - 0.27, _plain(p50), transform=axes.get_yaxis_transform(), va="bottom", ha="right")
        axes.set_ylim(len(series) - 0.6, -0.95)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(xlabel)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        _plain_numbers(axes.xaxis)
        return Chart(title, svg=_svg(figure))


def lines(
    series: Mapping[str, tuple[Sequence[int], Sequence[float]]], *, title: str, xlabel: str, ylabel: str
) -> Chart:
    """Name -> (x, y), each a line."""
    palette = _palette(series, None)
    with matplotlib.rc_context(_SVG):
        figure, axes = _axes(2.3)
        for name, (x, y) in series.items():
            axes.plot(x, y, color=palette[name], linewidth=1.5)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        return Chart(title, svg=_svg(figure), legend=palette)


def _palette(names: Iterable[str], colors: Mapping[str, str] | None) -> dict[str, str]:
    fixed = colors or {}
    return {name: fixed.get(name, COLORS[place % len(COLORS)]) for place, name in enumerate(dict.fromkeys(names))}


def _ink(color: str) -> str:
    """Black or white, whichever is read more easily on the colour (WCAG's relative luminance)."""
    parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return "#000" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 else "#fff"


def _edges(values: list[np.ndarray]) -> tuple[np.ndarray, bool]:
    """Edges of 10 to 40 bins, the more the larger the smallest series, and whether some values lie beyond them."""
    low, high = min(data.min() for data in values), max(data.max() for data in values)
    # Per series, so that none is cut just because another has more values.
    inner_low = min(np.quantile(data, 0.005) for data in values)
    inner_high = max(np.quantile(data, 0.995) for data in values)
    clipped = bool(high - low > 1.5 * (inner_high - inner_low) > 0)
    if clipped:
        low, high = inner_low, inner_high
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):  # Too near each other for bins between.
        half = 0.5 * abs(low) or 0.5
        low, high = low - half, high + half
    smallest = min(data.size for data in values)
    return np.linspace(low, high, int(np.clip(2 * smallest ** (1 / 3), 10, 40)) + 1), clipped


def _plain(value: float) -> str:
    """
    >>> _plain(12345.6), _plain(0.15), _plain(-3.0)
    ('12,346', '0.150', '-3')
    """
    return f"{value:#.3g}" if abs(value) < 1 and value else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _plain_numbers(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}" if math.isfinite(value) else ""))


def _axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
