"""What a run shows: a bar with loss, accuracy, speed and time left, or plain lines; a table at its end."""

import contextlib
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


class Shown:
    """Where a run reports to; `advance` is called every step, the others when there is something to tell."""

    def __init__(self, console: Console, steps: int, names: tuple[str, ...]):
        self._console, self._steps, self._bar, self._task = console, steps, None, None
        self._names = names if len(names) > 1 else ("",)  # one training needs no name

    def tell(self, line: str) -> None:
        """A line of its own, above the bar."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def advance(self, step: int) -> None:
        """So many steps are done."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step)

    def logged(self, step: int, number: int, values: dict[str, Any]) -> None:
        """A logged step of one of the trainings."""
        text = (
            f"{self._names[number]} loss {values['loss']:.4f}  accuracy {values['accuracy']:.1%}"
            f"  {values['images_per_second']:.0f} images/s"
        ).strip()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, text=text)
        else:
            self.tell(f"step {step:>6}/{self._steps}  epoch {values['epoch']}  {text}")

    @contextlib.contextmanager
    def running(self, step: int) -> Iterator[None]:
        """A bar, while the body runs, where the output is a terminal."""
        if not self._console.is_terminal:
            yield
            return
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn())
        with Progress(*columns, console=self._console) as bar:
            self._bar, self._task = bar, bar.add_task("", total=self._steps, completed=step, text="compiling")
            try:
                yield
            finally:
                self._bar = self._task = None


def table(title: str, results: dict[str, dict[str, Any]]) -> Table:
    """The trainings side by side, a column each."""
    shown = Table("", *results, title=title)
    rows = (
        ("steps", "step", "{}"),
        ("last training loss", "loss", "{:.4f}"),
        ("test loss", "test_loss", "{:.4f}"),
        ("test accuracy", "test_accuracy", "{:.2%}"),
        ("images a second", "images_per_second", "{:.0f}"),
        ("seconds in steps", "seconds", "{:.1f}"),
    )
    for name, key, form in rows:
        shown.add_row(name, *(form.format(each[key]) for each in results.values()))
    if len(results) > 1:
        jconv, automatic = results.values()
        shown.add_row("jconv is faster", f"{automatic['seconds'] / jconv['seconds']:.2f} times", "")
    return shown
