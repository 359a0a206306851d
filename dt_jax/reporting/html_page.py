# SPDX-License-Identifier: Apache-2.0
"""One page to look at a run: figures, pictures and tables in a single HTML file.

Made of what lies in the workdir, pictures inside, without scripts: it opens offline.
"""

import base64
import json
import os
from html import escape
from pathlib import Path

from dt_jax.reporting.evaluation_tables import evaluation_tables
from dt_jax.reporting.plots import loss_png
from dt_jax.system.files import read_json, replacing
from dt_jax.training.metrics import read_metrics

PICTURES = {
    "loss.png": "The loss on training batches and the learning rate, by update.",
    "held_out.png": "The error of actions on held-out trajectories, by return-to-go.",
    "targets.png": "What was achieved for each target return. On the dashed line it is "
    "what was asked for; grey is what the training data holds.",
    "accounts.png": "The account by day: the mean over the episodes, in a band of its "
    "standard error.",
    "drawdown.png": "The loss since the account's peak, the mean over the episodes.",
}

STYLE = """
:root { color-scheme: light; --ink: #1d2530; --soft: #5c6773; --line: #dfe3e8 }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 3.5rem 1.25rem 5rem; max-width: 52rem;
  color: var(--ink); background: #fff; font: 1rem/1.6 system-ui, -apple-system,
  "Segoe UI", Roboto, Arial, sans-serif; font-variant-numeric: tabular-nums }
h1 { margin: 0; font-size: 2rem; line-height: 1.2; letter-spacing: -.02em;
  overflow-wrap: anywhere }
h2 { margin: 3.5rem 0 1rem; padding-top: 1rem; border-top: 1px solid var(--line);
  font-size: 1.25rem }
p, figcaption, .note, summary { color: var(--soft) }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.5rem, 1fr));
  gap: 1.25rem; margin: 2rem 0 0 }
dt { color: var(--soft); font-size: .85rem }
dd { margin: 0; font-size: 1.5rem; font-weight: 600; letter-spacing: -.01em }
figure { margin: 0 0 2rem; break-inside: avoid }
img { display: block; width: 100%; min-width: 30rem; height: auto }
figcaption, .note { margin: .5rem 0 0; font-size: .9rem }
.wide { overflow-x: auto; break-inside: avoid }
table { width: 100%; border-spacing: 0; font-size: .9rem; white-space: nowrap }
th, td { padding: .35rem 0 .35rem 1.25rem; text-align: right; font-weight: 400;
  line-height: 1.5rem; border-bottom: 1px solid var(--line) }
th:first-child { position: sticky; left: 0; padding-left: 0; text-align: left;
  background: #fff }
thead th { color: var(--soft); font-size: .85rem }
.warning { margin: 1rem 0 0; padding: .6rem 1rem; color: #5f3a00; background: #fff6e5;
  border-left: 4px solid #e69f00; break-inside: avoid }
summary { cursor: pointer }
pre { overflow-x: auto; font-size: .85rem }
@media (max-width: 40rem) { body { padding-top: 1.5rem }
  th, td { padding-left: .9rem } }
@media print { body { max-width: none; padding: 0; font-size: 10pt }
  h2 { break-after: avoid } img { min-width: 0; max-width: 34rem }
  th:first-child { position: static } }
"""


def write_page(workdir: str | os.PathLike) -> Path:
    """Write `report/index.html` from the JSON files and pictures that are there.

    These are summary.json, metrics.jsonl, data_report.json, config.json,
    report/evaluation.json and the `PICTURES` in report/; what is absent is left out.
    """
    workdir = Path(workdir)
    names = ("summary", "data_report", "config", "report/evaluation")
    summary, data, recipe, evaluation = (_read(workdir / f"{n}.json") for n in names)
    keys = escape(json.dumps(recipe, indent=2))
    loss, held_out, targets, accounts, losses = (
        _picture(workdir / "report" / name, text) for name, text in PICTURES.items()
    )
    tables = map(_table, evaluation_tables(evaluation) if evaluation else [])
    sections = {
        "Training": loss + held_out,
        "Returns": targets + next(tables, ""),
        "Accounts": accounts + losses + next(tables, ""),
        "Config": recipe
        and f"<details><summary>every key</summary><pre>{keys}</pre></details>",
    }
    title = escape(workdir.resolve().name)
    records = read_metrics(workdir / "metrics.jsonl")
    warnings = data.get("warnings", []) + evaluation.get("warnings", [])
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        f"<p>{escape(_lead(data, evaluation))}</p>",
        _definition_list(_figures(summary, records, evaluation)),
        *(f'<p class="warning">{escape(text)}</p>' for text in warnings),
        *(f"<h2>{name}</h2>\n{body}" for name, body in sections.items() if body),
        "</body></html>",
    ]
    path = workdir / "report" / "index.html"
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as unfinished:
        unfinished.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def run_fragment(workdir: str | os.PathLike) -> str:
    """HTML for a notebook: the run's name, its figures, its loss curve."""
    workdir = Path(workdir)
    names = ("summary", "report/evaluation")
    summary, evaluation = (_read(workdir / f"{name}.json") for name in names)
    records = read_metrics(workdir / "metrics.jsonl")
    cells = _figures(summary, records, evaluation)
    row = "".join(
        f"<td style='text-align:left;padding-right:2em'>{name}<br><b>{value}</b></td>"
        for name, value in cells.items()
    )
    picture = _image(loss_png(records), PICTURES["loss.png"]) if records else ""
    return (
        f"<div style='max-width:44rem'><b>{escape(str(workdir))}</b>"
        f"<table><tr>{row}</tr></table>{picture}</div>"
    )


def _read(path):
    return read_json(path) if path.is_file() else {}


def _lead(data, evaluation):
    text = "A Decision Transformer"
    if data:
        text += (
            f" trained on {data['trajectories']:,} trajectories, "
            f"{data['steps']:,} steps in all"
        )
    if evaluation:
        text += (
            f"; acting in {evaluation['environment']} as of update "
            f"{evaluation['step']:,}, {evaluation['episodes']} episodes for each "
            f"target from seed {evaluation['first_seed']} on"
        )
    return text + "."


def _figures(summary, records, evaluation) -> dict[str, str]:
    figures = {}
    if summary and records:
        figures["updates"] = f"{summary['global_step']:,}"
        figures["loss at the end"] = f"{records[-1]['loss']:.4g}"
        figures["parameters"] = f"{summary['num_parameters']:,}"
        figures["segments a second"] = f"{summary['train_samples_per_second']:,.0f}"
    if evaluation and evaluation["spearman"] is not None:
        figures["rank correlation"] = f"{evaluation['spearman']:.2f}"
    return figures


def _definition_list(figures):
    items = (f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in figures.items())
    return f"<dl>{''.join(items)}</dl>"


def _picture(path, caption):
    return _image(path.read_bytes(), caption) if path.is_file() else ""


def _image(png, caption):
    data = base64.b64encode(png).decode()
    return (
        f'<figure><div class="wide"><img style="max-width:100%" '
        f'alt="{escape(caption)}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def _table(table):
    def row(cells, tag="td"):
        name, *numbers = (escape(cell) for cell in cells)
        numbers = (f"<{tag}>{n.replace('-', '&minus;')}</{tag}>" for n in numbers)
        return f"<tr><th>{name}</th>{''.join(numbers)}</tr>\n"

    return (
        f'<div class="wide"><table><thead>{row(table.header, "th")}</thead>'
        f"<tbody>{''.join(map(row, table.rows))}</tbody></table></div>\n"
        f'<p class="note">{escape("; ".join(table.notes))}.</p>\n'
    )
