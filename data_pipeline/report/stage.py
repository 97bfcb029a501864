"""Stage `report`: what happened to every prompt and answer, as one HTML page and as a data card in Markdown."""

from pathlib import Path

from etils import epath

from data_pipeline import stage_files
from data_pipeline.config import PipelineConfig
from data_pipeline.prompts.stage import FUNNEL
from data_pipeline.report.card import card
from data_pipeline.report.facts import paths, read
from data_pipeline.report.page import TEMPLATES
from data_pipeline.report.sections import report
from fusejax.common.files import write_text

CODE = sorted([*Path(__file__).parent.glob("*.py"), *TEMPLATES.iterdir()])
"""What the pages depend on besides the tables."""


def run(config: PipelineConfig) -> None:
    """Writes `report.html` and `data_card.md`.

    Raises:
      UserError: a table of an earlier stage is missing.
    """
    output = epath.Path(config.output_dir)
    files = paths(config)
    funnel = output / FUNNEL
    inputs = stage_files.fingerprint(
        config.model_dump(mode="json"), list(config.domains), output.name,
        *files, *([funnel] if funnel.exists() else []), *CODE,
    )  # fmt: skip
    page, data_card = output / "report.html", output / "data_card.md"

    def work() -> str:
        facts = read(config)
        write_text(page, report(facts))
        write_text(data_card, card(facts))
        return f"{page}, {data_card}"

    stage_files.once(output, "report", inputs, [page, data_card], work)
