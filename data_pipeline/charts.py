"""Charts as inline SVG strings, for reports that are one HTML file."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#555555")
# Text stays text, so it can be found and copied; ids do not change from run to run.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fusejax",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
}
Size = tuple[float, float]


def bars(values: Mapping[str, float], *, title: str, width: float = 6.4) -> str:
    """Horizontal bars with their numbers, the first on top."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(title, (width, 0.6 + 0.36 * len(values)))
        drawn = axes.barh(list(values), list(values.values()), color=COLORS[0])
        axes.bar_label(drawn, fmt="{:,.6g}", padding=3)
        axes.invert_yaxis()
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.margins(x=0.15)
        return _svg(figure)


def stacked_bars(table: Mapping[str, Mapping[str, float]], *, title: str, width: float = 6.4) -> str:
    """One bar a row of `table`, as shares of the row's sum; the numbers inside are the counts themselves."""
    series = list(dict.fromkeys(name for row in table.values() for name in row))
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(title, (width, 0.9 + 0.36 * len(table)))
        left = np.zeros(len(table))
        for index, name in enumerate(series):
            counts = np.array([row.get(name, 0) for row in table.values()], float)
            totals = np.array([sum(row.values()) or 1 for row in table.values()], float)
            widths = counts / totals
            drawn = axes.barh(list(table), widths, left=left, label=name, color=COLORS[index % len(COLORS)])
            labels = [f"{count:,.0f}" if width > 0.05 else "" for count, width in zip(counts, widths, strict=True)]
            axes.bar_label(drawn, labels, label_type="center", color="white", fontsize=8)
            left += widths
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return _svg(figure)


def histograms(
    series: Mapping[str, Sequence[float] | np.ndarray],
    *,
    title: str,
    xlabel: str,
    size: Size = (4.6, 2.6),
) -> str:
    """Outlined histograms, as shares of each series, over common bins.

    An empty series is not drawn but keeps its colour, so that charts of the same series agree in theirs.
    """
    values = {name: np.asarray(data, float) for name, data in series.items()}
    values = {name: data[np.isfinite(data)] for name, data in values.items()}
    everything = np.concatenate([*values.values(), np.empty(0)])
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(title, size)
        if everything.size:
            low, high = everything.min(), everything.max()
            if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):  # Too near each other for 40 bins between.
                low, high = low - 0.5 * max(1, abs(low)), high + 0.5 * max(1, abs(high))
            edges = np.linspace(low, high, 41)
            for index, (name, data) in enumerate(values.items()):
                if data.size:
                    heights = np.histogram(data, edges)[0] / data.size
                    axes.stairs(heights, edges, label=name, color=COLORS[index % len(COLORS)], linewidth=1.5)
        axes.set_xlabel(xlabel)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        return _svg(figure)


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    size: Size = (4.6, 2.6),
) -> str:
    """Name -> (x, y), each a line."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(title, size)
        for index, (name, (x, y)) in enumerate(series.items()):
            axes.plot(x, y, label=name, color=COLORS[index % len(COLORS)], linewidth=1.5)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
        return _svg(figure)


def _figure(title: str, size: Size) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
