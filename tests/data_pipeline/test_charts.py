"""Charts are whole SVG elements, stable from run to run, that survive empty and strange input."""

import math
import xml.etree.ElementTree as ElementTree

import pytest

from data_pipeline import charts

CHARTS = {
    "bars": lambda: charts.bars({"prompts": 12, "answers": 1234}, title="Flow"),
    "stacked": lambda: charts.stacked_bars({"math": {"a": 3, "b": 1}, "code": {"b": 0}}, title="Wins"),
    "histograms": lambda: charts.histograms({"a": [0.1, 0.2, math.nan], "b": []}, title="R", xlabel="reward"),
    "close": lambda: charts.histograms({"a": [1e16, 1e16 + 2, 1e16]}, title="R", xlabel="reward"),
    "nothing": lambda: charts.histograms({"a": []}, title="R", xlabel="reward"),
    "lines": lambda: charts.lines({"sft": ([1, 2], [3.0, 2.0])}, title="Loss", xlabel="step", ylabel="loss"),
}


@pytest.mark.parametrize("name", CHARTS)
def test_svg(name: str):
    svg = CHARTS[name]()
    assert svg == CHARTS[name]()
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_bars_tell_their_numbers():
    assert ">1,234<" in CHARTS["bars"]()
    assert ">3<" in CHARTS["stacked"]()
