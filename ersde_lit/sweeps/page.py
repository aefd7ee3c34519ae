"""Page of a report, in HTML: tables, plots, pictures of samples, provenance; one file, without scripts or links."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ersde_lit.metrics.protocol import title
from ersde_lit.metrics.scores import METRICS
from ersde_lit.sweeps.cells import Record
from ersde_lit.sweeps.pictures import find_picture
from ersde_lit.sweeps.report import ImagesReport, Report
from ersde_lit.sweeps.sheet import Sheet, split_bold

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #1c2024; background: #fff;
       max-width: 80rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-top: 1rem; border-top: 1px solid #dde1e6; }
p { margin: .5rem 0; max-width: 52rem; overflow-wrap: anywhere; }
.lead { font-size: 1.05rem; }
.note { background: #fff6e0; border-left: 4px solid #e0a100; padding: .5rem .9rem; }
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; margin: .75rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .5rem; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid #e6e9ed; vertical-align: top; }
thead th { border-bottom: 2px solid #9aa3ad; white-space: nowrap; }
th:first-child { text-align: left; font-weight: 500; padding-left: .2rem; max-width: 22rem; overflow-wrap: anywhere; }
thead th, td b { font-weight: 650; }
td b { color: #0b5c2b; }
.facts th { min-width: 9rem; max-width: 16rem; } .facts td { text-align: left; overflow-wrap: anywhere; }
.samples th, .samples td { border: 0; text-align: left; }
.samples td { padding-bottom: .8rem; }
.samples img { display: block; width: 15rem; image-rendering: pixelated; }
.samples span { font-size: .85rem; color: #57606a; }
.beside { display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; align-items: flex-start; }
.plot { max-width: 100%; width: 46rem; height: auto; }
"""
ELSEWHERE = {"versions", "checkpoint", *METRICS}  # of the protocol
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(
    report: Report | ImagesReport,
    caption: str,
    notes: Sequence[str],
    plots: Mapping[str, Path],
    folder: Path,
) -> str:
    """The page.

    Args:
        caption: sentences on what was measured, and how.
        plots: PNG files by metric.
        folder: of the results, with pictures of the samples.
    """
    facts = _facts(report.records)
    of = ", ".join(facts.get("ckpt_path", ["images"]))
    parts = [f"<h1>Evaluation of {escape(of)}</h1>", f'<p class="lead">{escape(_lead(report))}</p>']
    parts += [f'<p class="note">Warning: {escape(note)}</p>' for note in notes]
    for metric, sheet in report.sheets().items():
        plot = ""
        if metric in plots:
            plot = f'<img class="plot" alt="{escape(title(metric))} over NFE" src="{_inline(plots[metric])}">'
        parts.append(f'<h2>{escape(title(metric) or "Scores")}</h2><div class="beside">{_table(sheet)}{plot}</div>')
    if isinstance(report, Report):
        parts.append(_samples(report, folder))
    parts.append(f"<h2>Provenance</h2><p>{escape(caption)}</p>{_list(facts)}")
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
    head += f"<title>Evaluation of {escape(of)}</title><style>{STYLE}</style>"
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _lead(report: Report | ImagesReport) -> str:
    """What was compared, and which came out best."""
    if isinstance(report, ImagesReport):
        return f"Measured: {'; '.join(record['sampler'] for record in report.records)}."
    count = len(report.samplers)
    what = (
        f"{count} sampler{'s' * (count > 1)} at NFE {', '.join(map(str, report.nfes))}: {report.images:,} images each"
    )
    spread = f", {report.spread}" if report.spread else ""
    return " ".join(f"{sentence}." for sentence in [what + spread, *report.leaders()])


def _table(sheet: Sheet) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in sheet.header)
    rows = [f"\n<tr><th>{escape(name)}</th>{''.join(map(_cell, cells))}</tr>" for name, *cells in sheet.rows]
    caption = f"<caption>{escape(sheet.heading)}</caption>"
    return f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead>{"".join(rows)}</table></div>'


def _cell(cell: str) -> str:
    text, bold = split_bold(cell)
    return f"<td><b>{escape(text)}</b></td>" if bold else f"<td>{escape(text)}</td>"


def _samples(report: Report, folder: Path) -> str:
    """Pictures, a row a sampler and a column an NFE, of the first set of seeds."""
    cells = [record for record in report.records if record["nfe"] is not None]
    seeds = next((record["seeds"] for record in cells), "")
    first = [record for record in reversed(cells) if record["seeds"] == seeds]
    shown = {(record["sampler"], record["asked"]): (record["nfe"], find_picture(folder, record)) for record in first}
    metric = report.metrics[0]
    rows = []
    for sampler, *scores in report.rows(metric)[: len(report.samplers)]:
        row = f"<th>{escape(sampler)}</th>"
        for asked, score in zip(report.nfes, scores, strict=True):
            nfe, found = shown.get((sampler, asked), (asked, None))
            picture = "no picture"
            if found:
                alt = escape(f"{sampler}, NFE {nfe}, seeds {found.seeds}")
                picture = f'<img alt="{alt}" src="{_inline(found.path)}">'
            row += (
                f"<td>{picture}<span>{escape(f'{title(metric)} {split_bold(score)[0]}' if score else '')}</span></td>"
            )
        rows.append(f"\n<tr>{row}</tr>")
    which = " or ".join(sorted({found.seeds for _, found in shown.values() if found}))
    said = f"<p>Seeds {escape(which)}, row by row: every sampler starts from the same noise.</p>" if which else ""
    head = "".join(f"<th>{escape(name)}</th>" for name in report.header)
    table = f'<table class="samples"><thead><tr>{head}</tr></thead>{"".join(rows)}</table>'
    return f'<h2>Samples</h2>{said}<div class="wide">{table}</div>'


def _facts(records: Sequence[Record]) -> dict[str, list[str]]:
    """All that the records say of how images were made and measured: each name with its different values."""
    facts: dict[str, dict[str, None]] = {}

    def add(name: str, value: Any) -> None:
        if value is not None:
            facts.setdefault(name, {})[str(value)] = None

    options: dict[tuple[str, str], list[int]] = {}
    for record in records:
        made: Mapping[str, Any] = record["description"] or {}
        for name, path in made.get("paths", {}).items():
            add(name, path)
            add(f"SHA-256 of {name}", made["checkpoints"].get(name))
        add("seeds", record["seeds"])
        add("image size", record.get("image_size"))
        add("device", made.get("device"))
        for name, version in {**made.get("versions", {}), **record["protocol"]["versions"]}.items():
            add(f"version of {name}", version)
        text = ", ".join(f"{name}={value}" for name, value in made.get("options", {}).items() if name != "nfe")
        if made.get("options") and record["nfe"] not in (nfes := options.setdefault((record["sampler"], text), [])):
            nfes.append(record["nfe"])
    for (sampler, text), nfes in options.items():
        add(f"options of {sampler}", f"NFE {', '.join(map(str, sorted(nfes)))}: {text}")
    for record in records:
        protocol = {name: value for name, value in record["protocol"].items() if name not in ELSEWHERE}
        if protocol["weights"] is None:
            del protocol["quantisation"]  # images from elsewhere
        for name, value in protocol.items():
            add(name.replace("_", " "), value)
    return {name: [*values] for name, values in facts.items()}


def _list(facts: Mapping[str, Sequence[str]]) -> str:
    rows = [
        f"\n<tr><th>{escape(name)}</th><td>{'<br>'.join(map(escape, values))}</td></tr>"
        for name, values in facts.items()
    ]
    return f'<table class="facts">{"".join(rows)}</table>'


def _inline(path: Path) -> str:
    """A PNG as a URI."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
