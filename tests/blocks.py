"""The code in a page of Markdown, for the tests that run it: tests/test_readme.py and tests/test_docs.py."""

import re
from pathlib import Path
from typing import Any, NamedTuple

FENCE = re.compile(r"^```([\w.-]*)[^\n]*\n(.*?)^```\s*$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: its language, its text, and the line of the page on which the text begins."""

    language: str
    text: str
    line: int


def blocks(path: Path) -> list[Block]:
    """Every fenced block of a page."""
    page = path.read_text(encoding="utf-8")
    return [Block(found[1], found[2], page.count("\n", 0, found.start(2)) + 1) for found in FENCE.finditer(page)]


def run(path: Path) -> dict[str, Any]:
    """Runs the Python blocks one after the other, as somebody who pastes them would; what they have defined."""
    names: dict[str, Any] = {"__name__": path.stem}
    for block in blocks(path):
        if block.language == "python":
            # The lines before it are there, empty, so that an error shows the line of the page.
            exec(compile("\n" * (block.line - 1) + block.text, str(path), "exec"), names)
    return names
