"""One HTML file with everything inside: figures as SVG, tables, machine facts."""

from __future__ import annotations

import json
from html import escape

from .comparison import Change
from .figures import COLOURS, Drawing, drawings, main_results, setting
from .peers import NAME
from .results import Run
from .tables import TEXT_COLUMNS, Table, mean_slowness, tables, title_lines

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --paper: #ffffff; --faint: #6a7079;
  --line: #d9dce1; --band: #f5f6f8; --own: #c8431d; --bad: #c0182b; --good: #1d7f3b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6ea; --paper: #16181c; --faint: #9aa1ab;
  --line: #353a42; --band: #1e2127; --own: #ff8a66; --bad: #ff7885; --good: #6fd08c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 5rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .4rem; }
p { margin: .25rem 0; max-width: 62rem; }
.facts, figcaption, .note { color: var(--faint); font-size: .9rem; }
.facts p { max-width: none; }
figure { margin: 0; }
.panels { display: flex; flex-wrap: wrap; gap: 1rem 1.2rem; margin-top: .6rem; }
.panels div { max-width: 100%; overflow-x: auto; }
.panels svg { display: block; height: auto; color: var(--ink); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin-top: .7rem; font-size: .9rem; }
.legend span { white-space: nowrap; }
.legend svg { width: .75em; height: .75em; margin-right: .4em; }
figure svg text { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif !important; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; margin-top: .6rem; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums;
  white-space: nowrap; min-width: 100%; }
th, td { padding: .28rem .7rem; text-align: right; }
th { border-bottom: 1px solid var(--line); vertical-align: bottom; white-space: normal;
  font-weight: 600; }
th:nth-child(-n+TEXT), td:nth-child(-n+TEXT) { text-align: left; }
tbody tr:nth-child(even) { background: var(--band); }
td.own { color: var(--own); font-weight: 600; }
td.bad { color: var(--bad); font-weight: 600; }
td.good { color: var(--good); font-weight: 600; }
.interval { color: var(--faint); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin-top: 1rem; font-size: .9rem; }
nav a { color: inherit; }
details pre { font-size: .78rem; overflow-x: auto; background: var(--band); padding: .8rem;
  border-radius: 6px; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin-top: 1.2rem; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .7rem 1rem; min-width: 10rem; }
.card b { display: block; font-size: 1.5rem; line-height: 1.2; color: var(--own); }
.card strong, .card span { display: block; font-size: .9rem; }
.card span { color: var(--faint); }
h2.subject { font-size: 1.05rem; margin-top: 1.6rem; }
""".replace("TEXT", str(TEXT_COLUMNS))

BAD = ("wrong", "failed", "WRONG", "regression", "not solved")
READING = (
    "Every contestant's answer was compared with numpy in float64 before it was timed. A round "
    "times each of them once, in random order; ratios are medians of the ratios within rounds, "
    "with 95 % bootstrap intervals. 1.5 says that the peer takes 1.5 times as long. ms are medians "
    "per call; GF/s count the flops of the minimum; bytes are by formula; memory is this library's "
    "peak above data and net; first ms has compilation and first touch inside. 2T: two threads."
)


def page(run: Run, changes: list[Change] | None = None) -> str:
    """The whole file."""
    pictures, found = drawings(run), tables(run, changes)
    sections = [figure(drawing) for drawing in pictures] + [section(table) for table in found]
    titles = [drawing.title for drawing in pictures] + [short(table.title) for table in found]
    links = "".join(f'<a href="#{anchor(t)}">{escape(t)}</a>' for t in titles)
    facts = "".join(f"<p>{escape(line)}</p>" for line in title_lines(run))
    raw = escape(json.dumps(run.machine, indent=1))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Benchmarks of natgrad_fast</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Benchmarks of natgrad_fast</h1>
<div class="facts">{facts}</div>
{cards(run)}
<nav>{links}</nav>
<p class="note" style="margin-top:1rem">{escape(READING)}</p>
{"".join(sections)}
<h2 id="machine">Machine</h2>
<details><summary>All facts</summary><pre>{raw}</pre></details>
</body>
</html>
"""


def anchor(title: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in title.lower())


def short(title: str) -> str:
    return title.partition(":")[0]


def cards(run: Run) -> str:
    """The geometric means of the GGN product, one card for each peer."""
    of = [r for r in main_results(run, ["products"]) if r.row.quantity == "ggn"]
    of = [r for r in of if r.row.num_vectors == 1]
    made = []
    for name in run.contestants:
        mean, nets = mean_slowness(of, name)
        if name != NAME and nets:
            over = f"geometric mean of {nets} nets" if nets > 1 else "one net"
            made.append(
                f'<div class="card"><b style="color:{COLOURS.get(name, "inherit")}">'
                f"{mean:.2f} x</b><strong>{escape(name)}</strong><span>{over}</span></div>"
            )
    if not made:
        return ""
    subject = (
        f"A Gauss-Newton (GGN) product: how many times as long as {NAME} a peer takes "
        f"({setting(of)})"
    )
    return f'<h2 class="subject">{escape(subject)}</h2><div class="cards">{"".join(made)}</div>'


SHAPES = {"o": "M6 1a5 5 0 1 0 .1 0z", "s": "M1 1h10v10H1z", "^": "M6 1l5.5 10H.5z",
          "v": "M6 11L.5 1h11z", "D": "M6 0l6 6-6 6-6-6z"}  # fmt: skip


def figure(drawing: Drawing) -> str:
    keys = "".join(
        f'<span><svg viewBox="0 0 12 12"><path d="{SHAPES[entry.marker]}" fill="{entry.colour}"/>'
        f"</svg>{escape(entry.name)}</span>"
        for entry in drawing.legend
    )
    panels = "".join(f"<div>{picture}</div>" for picture in drawing.svgs())
    return (
        f'<h2 id="{anchor(drawing.title)}">{escape(drawing.title)}</h2>'
        f"<figure><figcaption>{escape(drawing.caption)}</figcaption>"
        f'<div class="legend">{keys}</div><div class="panels">{panels}</div></figure>'
    )


def section(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    body = "".join(f"<tr>{''.join(map(td, row))}</tr>" for row in table.rows)
    title = table.title[:1].upper() + table.title[1:]
    return (
        f'<h2 id="{anchor(short(table.title))}">{escape(title)}</h2><div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        + "".join(f'<p class="note">{escape(note)}.</p>' for note in table.notes)
    )


def td(cell: str) -> str:
    """A cell; intervals are faint, verdicts coloured."""
    if cell in BAD:
        return f'<td class="bad">{cell}</td>'
    if cell == "improvement":
        return f'<td class="good">{cell}</td>'
    if cell == NAME or cell.startswith(f"{NAME},"):
        return f'<td class="own">{escape(cell)}</td>'
    value, bracket, rest = cell.partition(" [")
    if bracket:
        return f'<td>{escape(value)} <span class="interval">[{escape(rest)}</span></td>'
    return f"<td>{escape(cell)}</td>"
