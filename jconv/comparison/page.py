"""A comparison as one HTML page: no script, no style and no picture from elsewhere, readable on a phone."""

import base64
import html as markup
import io
from collections.abc import Sequence

from jconv.comparison import picture, table
from jconv.comparison.result import Comparison

STYLE = """
:root { color-scheme: light dark; --line: #8884; --bad: #c22; --good: #287a3c; }
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 62rem; padding: 1rem; }
h1 { font-size: 1.35rem; line-height: 1.25; }
h1, .verdict { overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.verdict { border-left: .35rem solid var(--good); padding: .5rem .75rem; background: #8881; }
.verdict.no { border-color: var(--bad); }
.verdict p { margin: .25rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .5rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
td:first-child { font-family: ui-monospace, monospace; }
tr.no td { color: var(--bad); font-weight: 600; }
img { display: block; width: 100%; max-width: 44rem; height: auto; background: #fff; border-radius: .3rem; }
p.small { font-size: .85rem; opacity: .8; }
@media (max-width: 40rem) {
  thead { display: none; }
  tr { display: block; padding: .5rem 0; border-bottom: 1px solid var(--line); }
  td { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: .1rem 0; }
  td:first-child { font-weight: 600; }
  td:not(:first-child)::before { content: attr(data-label); opacity: .75; font-weight: 400; }
}
"""


def html(comparison: Comparison) -> str:
    """The page."""
    say = markup.escape
    title = f"{comparison.name}: hand-written and automatic derivatives"
    lines = [d.place() for d in comparison.disagreements] or [comparison.verdict()]
    verdict = "".join(f"<p>{say(line)}</p>" for line in lines)
    if not comparison.agrees:
        verdict = f"<p><strong>The rules disagree.</strong></p>{verdict}"
    differences = table.difference_rows(comparison)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{say(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{say(title)}</h1>
<div class="verdict{"" if comparison.agrees else " no"}">{verdict}</div>
<h2>Differences</h2>
{table_markup(table.DIFFERENCES, differences, [row[-1] == "NO" for row in differences])}
<p class="small">{say(table.legend(comparison))}</p>
<h2>Costs</h2>
{table_markup(table.COSTS, table.cost_rows(comparison))}
<p class="small">{say(table.machine(comparison))}</p>
<h2>Picture</h2>
<img alt="Relative differences of each array, and times of both forms" src="data:image/png;base64,{_png(comparison)}">
</body>
</html>
"""


def table_markup(titles: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool] = ()) -> str:
    """A table of text; `marked` rows are shown as bad ones. On a phone each row stands by itself, titles beside it."""
    say = markup.escape
    head = "".join(f'<th scope="col">{say(title)}</th>' for title in titles)
    body = []
    for row, mark in zip(rows, marked or [False] * len(rows), strict=True):
        cells = "".join(
            f'<td data-label="{say(title)}">{say(cell)}</td>' for title, cell in zip(titles, row, strict=True)
        )
        body.append(f'<tr class="{"no" if mark else "yes"}">{cells}</tr>')
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{chr(10).join(body)}\n</tbody>\n</table>"


def _png(comparison: Comparison) -> str:
    out = io.BytesIO()
    picture.figure(comparison).savefig(out, format="png", dpi=140)
    return base64.b64encode(out.getvalue()).decode("ascii")
