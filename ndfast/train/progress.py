"""The bars of a command's trainings and passes over data; the bars themselves are rich's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import perf_counter

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_FORMATS = {
    "loss": "loss {:.4f}",
    "accuracy": "accuracy {:.2%}",
    "images_per_s": "{:,.0f} images/s",
}


class Bar:
    """One bar, and what is shown beside it."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self._shown: dict[str, float] = {}

    @property
    def shown(self) -> str:
        """What stands beside the bar."""
        return ", ".join(
            text.format(self._shown[name]) for name, text in _FORMATS.items() if name in self._shown
        )

    def show(self, **values: float) -> None:
        """Shows these from now on: "loss", "accuracy" (0 to 1), "images_per_s"."""
        self._shown |= values
        self._progress.update(self._task, shown=self.shown)

    def advance(self, **values: float) -> None:
        """A step more; ``values`` as `show` takes them."""
        if values:
            self.show(**values)
        self._progress.advance(self._task)


class Bars:
    """The bars of what runs now; of what is over a line stays, so that a hundred runs fit.

    Args:
        console: where to. One that is no terminal gets the lines alone.
        enabled: False shows nothing.
    """

    def __init__(self, console: Console, enabled: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}", markup=False),
            console=console,
            disable=not enabled,
        )

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    @contextmanager
    def run(self, description: str, total: int | None, completed: int = 0) -> Iterator[Bar]:
        """A bar of ``total`` steps (None: not known), of which ``completed`` are done already."""
        task = self._progress.add_task(description, total=total, completed=completed, shown="")
        bar, start = Bar(self._progress, task), perf_counter()
        try:
            yield bar
            took = timedelta(seconds=round(perf_counter() - start))
            self.note(", ".join(filter(None, (f"{description}: {took}", bar.shown))))
        finally:
            self._progress.remove_task(task)

    def note(self, sentence: str) -> None:
        """Prints a line above the bars."""
        if not self._progress.disable:
            self._progress.console.print(Text(sentence))
