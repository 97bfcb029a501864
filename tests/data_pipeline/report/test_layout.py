"""The report in a browser, as wide as a laptop and as a phone."""

import json
from pathlib import Path

import pytest

from data_pipeline.__main__ import main
from data_pipeline.report import reasons
from tests.browser import WIDTHS, Browser, check_layout
from tests.data_pipeline.report.test_report import made


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of long names, large numbers, many reasons, and texts without a place to break."""
    folder = tmp_path_factory.mktemp("report")
    long = "a" * 60
    answers = [
        ("i0", long, 0.15, None), ("i0", long, 0.1, None), ("i0", "b", 12345.678, None),
        ("m0", long, 0.15, "correct"), ("m0", long, 0.1, "wrong"), ("m1", "b", None, "unknown"),
    ]  # fmt: skip
    columns = {"detail": f"failed_test: {'x' * 900}", "extracted": "7" * 900, "completion_tokens": 123_456_789}
    recipe = {"path": "/x", "adapter": "greengerong/leetcode", "dataset": "code-set", "domain": "code"}
    config = made(
        folder, answers, "imcz", sources=[long, "b"], columns=columns, prompts=[recipe],
        selection={"instruction": {"sft_fraction": 0, "max_margin": None}},
    )  # fmt: skip
    dropped = {reason: 1_234_567 - 1000 * place for place, reason in enumerate(reasons.RECORDS)}
    dropped |= {f"contaminated: {'e' * 70}": 9_999_999, "of_ones_own": 7}
    total = sum(dropped.values())
    names = {"path": f"/data/{'d' * 90}.jsonl", "dataset": f"organisation/{'d' * 70}", "domain": "math"}
    entry = {**names, "read": total + 7_654_321, "dropped": dropped, "kept": 7_654_321}
    out = Path(config.output_dir)
    (out / "prompts_funnel.json").write_text(json.dumps([entry]))
    main(["report", "--config", str(folder / "data.yaml")])
    return out / "report.html"


def test_nothing_is_wider_than_the_page(page: Path, browser: Browser):
    check_layout(browser, page)


def test_reasons_stand_with_their_words(page: Path):
    text = page.read_text()
    assert "no_reward <small>nothing gave it a reward</small>" in text
    assert "failed_test (correct) <small>a test failed</small>" in text
    assert "of_ones_own</td>" in text


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("<table><tr>" + "<td>a column</td>" * 40 + "</tr></table>", "wide"),
        (f"<p style='white-space:nowrap'>{'word ' * 400}</p>", "content"),
        ("<div style='position:absolute;left:-9px;width:20px'>left</div>", "wide"),
        ("<div style='width:20px;overflow:hidden;white-space:nowrap'>some words</div>", "cut"),
        ("<svg width=50 height=20><text y=15>some words</text></svg>", "cut"),
        ("<script>console.error('wrong')</script>", "problems"),
        ("<script>missing()</script>", "problems"),
        ("<img src='missing.png'>", "requests"),
    ],
)
def test_a_browser_finds_what_is_wrong(body: str, found: str, width: int, tmp_path: Path, browser: Browser):
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><meta name=viewport content='width=device-width'><title>x</title>{body}")
    opened = browser.open(page, width)
    assert opened.width == width
    assert opened.content > width if found == "content" else getattr(opened, found)


def test_a_phone_makes_a_page_without_viewport_small(tmp_path: Path, browser: Browser):
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><title>x</title>")
    assert browser.open(page, 390).width == 980


def test_no_recipe_no_comparison(tmp_path: Path):
    out = Path(made(tmp_path).output_dir)
    assert "FuseChat" not in (out / "report.html").read_text() + (out / "data_card.md").read_text()


def test_comparison_with_the_recipe(page: Path):
    assert 'href="#beside-fusechat-3.0"' in page.read_text()
    assert "## Beside FuseChat-3.0" in (page.parent / "data_card.md").read_text()
