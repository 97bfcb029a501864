"""Stage `report`: what happened to every prompt and answer, as one HTML page and as a data card in Markdown."""

from pathlib import Path

from etils import epath

from data_pipeline import report_card, report_facts, report_html, store
from data_pipeline.config import PipelineConfig
from data_pipeline.prompts import FUNNEL
from fusejax.files import write_text

CODE = ("report_facts.py", "report_recipe.py", "report_html.py", "report_card.py", "charts.py")
"""What the pages depend on besides the tables."""


def run(config: PipelineConfig) -> None:
    """Writes `report.html` and `data_card.md`.

    Raises:
      UserError: a table of an earlier stage is missing.
    """
    output = epath.Path(config.output_dir)
    files = report_facts.paths(config)
    funnel = output / FUNNEL
    code = [Path(__file__).parent / name for name in CODE]
    inputs = store.fingerprint(
        config.model_dump(mode="json"), output.name, *files, *([funnel] if funnel.exists() else []),
        *code,
    )  # fmt: skip
    page, card = output / "report.html", output / "data_card.md"

    def work() -> str:
        facts = report_facts.read(config)
        write_text(page, report_html.report(facts))
        write_text(card, report_card.card(facts))
        return f"{page}, {card}"

    store.once(output, "report", inputs, [page, card], work)
