"""Docstrings as they stand in the code, made into what the page's Markdown means by the same words.

In a docstring * is a product or a star before an argument, and < a comparison; formulas are lines indented by four; a
section with one example is called Example. griffe, which reads the code for the API pages, loads this as an extension.
"""

import re
from typing import Any

import griffe

SECTIONS = re.compile(r"^(Args|Returns|Raises|Example|Yields|Attributes):$")


class Docstrings(griffe.Extension):
    """griffe hands every object that it has read to on_object."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """The docstring with stars and comparisons escaped, formulas as code, and Example as the section Examples."""
    lines: list[str] = []
    section, example = "", False
    for line in text.splitlines():
        found = SECTIONS.match(line)
        if found or (line and not line.startswith(" ")):
            section = found[1] if found else ""
        example = bool(line.strip()) and (example or line.lstrip().startswith(">>>"))
        formula = line.startswith("    ") and not section
        before = lines[-1] if lines else ""
        begins = formula and before and not before.startswith("    ")
        ends = line and not formula and not section and not example and before.startswith("    ")
        if begins or ends:
            lines.append("")
        if found and section == "Example":
            lines.append("Examples:")
        else:
            lines.append(line if example or formula else escaped(line))
    return "\n".join(lines)


def escaped(line: str) -> str:
    """Stars, comparisons and bars mean themselves, except within backquotes."""
    parts = line.split("`")
    parts[::2] = [re.sub(r"([*<\[])", r"\\\1", part).replace("\\<", "&lt;") for part in parts[::2]]
    return "`".join(parts)
