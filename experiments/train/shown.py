"""What a run shows: a bar with loss, accuracy, speed and time left, or plain lines."""

import contextlib
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


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
