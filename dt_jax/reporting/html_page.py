# SPDX-License-Identifier: Apache-2.0
"""A page of figures, pictures and tables in a single HTML file.

Without scripts and with everything inside, so that it opens offline; light or dark as
the reader's browser is set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from dt_jax.reporting.evaluation_tables import Table
from dt_jax.reporting.style import css_colours, to_svg
from dt_jax.system.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
* { box-sizing: border-box }
body { margin: 0 auto; padding: 3rem 1.25rem 5rem; max-width: 66rem;
  color: var(--ink); background: var(--paper); font: 1rem/1.6 system-ui, -apple-system,
  "Segoe UI", Roboto, Arial, sans-serif; font-variant-numeric: tabular-nums }
h1 { margin: 0; font-size: 2rem; line-height: 1.2; letter-spacing: -.02em;
  overflow-wrap: anywhere }
h2 { margin: 3rem 0 1.25rem; padding-top: 1rem; border-top: 1px solid var(--line);
  font-size: 1.25rem; line-height: 1.3 }
a { color: var(--blue) }
p, figcaption, .note, summary { color: var(--soft) }
h1 + p { max-width: 46rem; margin: .75rem 0 0 }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr));
  gap: 1.25rem; margin: 2rem 0 0 }
dt { color: var(--soft); font-size: .85rem }
dd { margin: 0 }
.figures dd { font-size: 1.3rem; font-weight: 600; letter-spacing: -.01em;
  white-space: nowrap }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.5rem;
  margin: 0 0 1.5rem; font-size: .9rem }
.facts dt { font-size: inherit }
.facts dd { min-width: 0; overflow-wrap: anywhere }
.pictures { display: grid; gap: 2rem 2.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)) }
figure { margin: 0; min-width: 0; max-width: 34rem; break-inside: avoid }
figure svg { display: block; width: 100%; height: auto }
figcaption, .note { margin: .5rem 0 0; font-size: .9rem; line-height: 1.45 }
.wide { overflow-x: auto; margin-top: 2rem; break-inside: avoid }
table { border-spacing: 0; min-width: 100%; font-size: .9rem; white-space: nowrap }
th, td { padding: .35rem 0 .35rem 1.25rem; text-align: right; font-weight: 400;
  line-height: 1.5rem; border-bottom: 1px solid var(--line) }
th:first-child { position: sticky; left: 0; padding-left: 0; text-align: left;
  background: var(--paper) }
thead th { color: var(--soft); font-size: .85rem }
.warning { margin: 1rem 0 0; padding: .6rem 1rem; color: var(--ink);
  background: var(--band); border-left: 4px solid var(--gold); break-inside: avoid }
details { margin-bottom: 1.5rem }
summary { cursor: pointer }
pre { overflow-x: auto; font-size: .85rem }
@media (max-width: 40rem) { body { padding-top: 1.5rem }
  .facts { grid-template-columns: 1fr; gap: 0 } .facts dd { margin-bottom: .5rem }
  th, td { padding-left: .9rem } }
@media print { body { max-width: none; padding: 0; font-size: 10pt }
  h2 { break-after: avoid } .pictures { grid-template-columns: 1fr 1fr }
  th:first-child { position: static } }
"""


@dataclass(frozen=True)
class Picture:
    """A figure, its name (also that of its file), and what it shows."""

    name: str
    figure: "Figure"
    caption: str

    @cached_property
    def svg(self) -> str:
        return to_svg(self.figure, self.name, self.caption)


def write_page(
    path: Path,
    *,
    title: str,
    lead: str,
    figures: Mapping[str, str],
    warnings: Sequence[str],
    sections: Mapping[str, str],
) -> None:
    """Write it, whole or not at all; all but the sections is text.

    Args:
      sections: HTML by heading, of the functions below; empty ones are left out.
    """
    name = escape(title)
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{name}</title><style>{css_colours()}{STYLE}</style></head><body>",
        f"<h1>{name}</h1>",
        f"<p>{escape(lead)}</p>",
        definition_list(figures, "figures"),
        *(f'<p class="warning">{escape(text)}</p>' for text in warnings),
        *(
            f"<h2>{escape(name)}</h2>\n{body}"
            for name, body in sections.items()
            if body
        ),
        "</body></html>",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        unfinished.write_text("\n".join(lines) + "\n", "utf-8")


def definition_list(values: Mapping[str, str], kind: str = "facts") -> str:
    """Names and values: large 'figures' side by side, or 'facts' in lines."""
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        if kind == "facts"
        else f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in values.items()
    )
    return f'<dl class="{kind}">{items}</dl>\n' if items else ""


def picture_grid(pictures: Sequence[Picture]) -> str:
    """Pictures with their captions, side by side where there is room."""
    shown = "".join(
        f"<figure>{each.svg}<figcaption>{escape(each.caption)}</figcaption></figure>\n"
        for each in pictures
    )
    return f'<div class="pictures">{shown}</div>\n' if shown else ""


def table_html(table: Table, links: Mapping[str, str] | None = None) -> str:
    """A table with its notes; `links` by the first cell of a row."""

    def row(cells, tag="td"):
        name, *numbers = cells
        first = escape(name)
        if links and name in links:
            first = f'<a href="{escape(links[name])}">{first}</a>'
        numbers = (
            f"<{tag}>{escape(cell).replace('-', '&minus;', 1)}</{tag}>"
            if cell.startswith("-")
            else f"<{tag}>{escape(cell)}</{tag}>"
            for cell in numbers
        )
        return f"<tr><th>{first}</th>{''.join(numbers)}</tr>\n"

    notes = f'<p class="note">{escape("; ".join(table.notes))}.</p>\n'
    return (
        f'<div class="wide"><table><thead>{row(table.header, "th")}</thead>'
        f"<tbody>{''.join(map(row, table.rows))}</tbody></table></div>\n"
        f"{notes if table.notes else ''}"
    )


def details(summary: str, text: str) -> str:
    """Text that a reader unfolds."""
    return f"<details><summary>{summary}</summary><pre>{escape(text)}</pre></details>\n"


def link_list(links: Mapping[str, str]) -> str:
    """Addresses relative to the page, and what lies there."""
    items = "".join(
        f'<dt><a href="{address}">{address.removeprefix("../")}</a></dt>'
        f"<dd>{escape(what)}</dd>"
        for address, what in links.items()
    )
    return f'<dl class="facts">{items}</dl>\n' if items else ""
