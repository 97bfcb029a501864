"""A report as one HTML page: plain data in, a page out that needs no script, no network and no other file.

Templates hold the HTML, and escape every text that comes into them; `templates/style.css` is the one style sheet.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import polars as pl

TEMPLATES = Path(__file__).parent / "templates"
LONG = 30
"""Characters beyond which a cell's text may wrap."""


@dataclass(frozen=True)
class Reason:
    """A cell with a reason and what it means."""

    code: str
    words: str
    """"" where nothing is known of it but its name."""

    def __str__(self) -> str:
        return f"{self.code} ({self.words})" if self.words else self.code


@dataclass(frozen=True)
class Table:
    """A table, which `parts.html` puts into a scrolling box."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    """Cells: text, numbers, a `Reason`, or None, which is shown as a dash."""
    total: bool = False
    """The last row is the sum of the others."""

    @classmethod
    def of(cls, frame: pl.DataFrame) -> "Table":
        return cls(frame.columns, frame.rows())

    @property
    def numeric(self) -> list[bool]:
        """Whether each column has numbers, which are aligned right."""
        return [any(isinstance(row[place], int | float) for row in self.rows) for place in range(len(self.header))]


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading, which the links at the top lead to."""

    title: str
    template: str
    data: Mapping[str, Any] = field(default_factory=dict)
    """What the template shows."""


def render(title: str, opening: Section, sections: Iterable[Section], templates: Path = TEMPLATES) -> str:
    """A whole HTML document.

    Args:
      title: of the page.
      opening: shown first, above the links; its title is not.
      sections: in their order.
      templates: a folder whose templates are found besides the common ones.
    """
    environment = _environment(templates)

    def body(section: Section) -> str:
        return environment.get_template(section.template).render(section.data)

    shown = [(section.title, section.title.lower().replace(" ", "-"), body(section)) for section in sections]
    return environment.get_template("page.html").render(title=title, opening=body(opening), sections=shown)


def cell(value: Any) -> str:
    """A cell as text: numbers with separators, shares and means with four digits.

    >>> cell(12345), cell(0.123456), cell(None), cell("as it is")
    ('12,345', '0.1235', '–', 'as it is')
    """
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@functools.cache
def _environment(templates: Path) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([templates, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = cell
    environment.globals["long"] = LONG
    return environment
