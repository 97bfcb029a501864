"""Charts are stable from run to run, hold whole SVG elements, and survive empty and strange input."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from data_pipeline.report import charts
from data_pipeline.report.page import Section, render

DRAWN = {
    "histograms": lambda: charts.histograms({"a": [0.1, 0.2, math.nan], "b": []}, title="R", xlabel="reward"),
    "close": lambda: charts.histograms({"a": [1e16, 1e16 + 2, 1e16]}, title="R", xlabel="reward"),
    "band": lambda: charts.histograms({"a": [0.0, 1.0]}, title="R", xlabel="reward", filled="a", band=(0.5, None)),
    "beside the band": lambda: charts.histograms({"a": [0.0, 1.0]}, title="R", xlabel="reward", band=(2.0, 3.0)),
    "ranges": lambda: charts.ranges({"a": [1.0, 2.0, 3.0, 4.0, 5.0], "b": [2.0] * 5}, title="R", xlabel="reward"),
    "lines": lambda: charts.lines({"sft": ([1, 2], [3.0, 2.0])}, title="Loss", xlabel="step", ylabel="loss"),
}


def drawn(chart: charts.Chart) -> str:
    """As it comes onto a page, of which the style sheet is cut off."""
    page = render("Charts", Section("", "margins.html", {"charts": [chart], "quantiles": []}), [])
    return page[page.index("<figure>") : page.index("</figure>")]


@pytest.mark.parametrize("name", DRAWN)
def test_svg(name: str):
    chart = DRAWN[name]()
    assert chart == DRAWN[name]()
    (svg,) = re.findall("<svg.*</svg>", drawn(chart), re.DOTALL)
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"


def test_bars_tell_their_numbers():
    chart = drawn(charts.bars({"prompts": 12, "<answers>": 1234, "none": 0}, title="Flow"))
    assert "<span>1,234</span>" in chart and "&lt;answers&gt;" in chart
    assert re.findall("width:([^%]*)%", chart) == ["0.972", "100.000"]  # Of nothing, there is no bar.


def test_stacked_bars_are_shares_and_leave_out_what_is_not_there():
    chart = drawn(charts.stacked_bars({"math": {"a": 3, "b": 1, "c": 0}, "code": {"a": 0}}, title="Wins"))
    assert re.findall("width:([^%]*)%", chart) == ["75.000", "25.000"]
    assert re.findall("</i>([^<]*)</span>", chart) == ["a", "b"]
    assert 'title="a: 3 (75.0%)">3</i>' in chart


def test_nothing_to_draw_is_said():
    assert "No values." in drawn(charts.histograms({"a": []}, title="R", xlabel="reward"))
    assert "No values." in drawn(charts.ranges({}, title="R", xlabel="reward"))


def test_a_few_distant_values_do_not_stretch_the_axis():
    near = [float(value) for value in range(1000)]
    assert "outermost bins hold all beyond" in charts.histograms({"a": [*near, 1e6]}, title="L", xlabel="tokens").svg
    assert "beyond" not in charts.histograms({"a": near}, title="L", xlabel="tokens").svg


@pytest.mark.parametrize("color", [*charts.COLORS, charts.GREY])
def test_numbers_on_bars_have_contrast(color: str):
    """At least 4.5 to 1, as WCAG asks of text."""

    def luminance(value: str) -> float:
        parts = [int(value[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    chart = charts.stacked_bars({"x": {"a": 1}}, title="T", colors={"a": color})
    ink = {"#000": 0.0, "#fff": 1.0}[chart.bars[0].parts[0].ink]
    dark, light = sorted((luminance(color), ink))
    assert (light + 0.05) / (dark + 0.05) >= 4.5
