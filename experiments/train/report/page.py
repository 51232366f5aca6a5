"""A run as one HTML page: no script, no style and no picture from elsewhere, readable on a phone."""

import base64
import html as markup
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.train.report import table
from experiments.train.report.files import Run
from jconv.comparison.page import STYLE, table_markup


class Picture(NamedTuple):
    """A plot's file name, title, what it shows in a sentence, and its PNG."""

    file: str
    title: str
    caption: str
    png: bytes


# Two columns of settings, or of figures, are read across on a phone too; more of them one below the other.
MORE = """
h1 + p { margin-top: 0; opacity: .8; }
.big { font-size: 2rem; font-weight: 650; margin: .5rem 0 0; font-variant-numeric: tabular-nums; }
.big small { font-size: 1rem; font-weight: 400; opacity: .8; }
figure { margin: 0 0 1rem; }
figcaption { font-size: .9rem; opacity: .85; margin-top: .4rem; max-width: 44rem; }
summary { cursor: pointer; margin: 2rem 0 .5rem; font-weight: 600; font-size: 1.1rem; }
td { overflow-wrap: anywhere; }
"""


def html(run: Run, pictures: Sequence[Picture], notes: Sequence[str]) -> str:
    """The page; `notes`: what it cannot show, and why."""
    say = markup.escape
    title = table.title(run)
    figures = "\n".join(
        f'<h2>{say(p.title)}</h2>\n<figure><img alt="{say(p.title)}" src="data:image/png;base64,{_base64(p.png)}">'
        f"<figcaption>{say(p.caption)}</figcaption></figure>"
        for p in pictures
    )
    confused = table.confusions(run)
    confusions = ""
    if confused:
        confusions = "<h2>Most often confused</h2>\n" + table_markup(("class", "taken for", "images"), confused)
    told = "".join(f'<p class="small">{say(note)}</p>' for note in notes)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{say(title)}</title>
<style>{STYLE}{MORE}</style>
</head>
<body>
<h1>{say(title)}</h1>
{_headline(run)}
<h2>Figures</h2>
{table_markup(table.columns(run), table.rows(run))}
{told}
{figures}
{confusions}
<details><summary>Settings</summary>
{table_markup(("setting", "value"), _settings(run.settings))}
</details>
</body>
</html>
"""


def _headline(run: Run) -> str:
    final = run.log.final
    if final is None:
        return '<div class="verdict no"><p><strong>The run did not reach its end.</strong></p></div>'
    accuracy = f"{final['test_accuracy']:.2%}" if final.get("test_accuracy") is not None else "-"
    images = (
        f" of {len(run.predictions.labels):,} test images" if run.predictions is not None else " on the test images"
    )
    return f'<p class="big">{accuracy} <small>right{images}</small></p>'


def _settings(settings: Mapping[str, object]) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in settings.items()]


def _base64(png: bytes) -> str:
    return base64.b64encode(png).decode("ascii")
