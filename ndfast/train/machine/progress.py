"""The bars of a command's trainings and passes over data; the bars themselves are rich's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import perf_counter

from rich.console import Console, RenderableType
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

_BEFORE, _AFTER = ("loss",), ("training", "accuracy", "images_per_s")
_FORMATS = {
    "loss": "loss {:.4f}",
    "training": "training {:.1%}",
    "accuracy": "accuracy {:.2%}",
    "images_per_s": "{:,.0f} images/s",
}


class Bar:
    """One bar, and what is shown with it."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self._shown: dict[str, float] = {}

    @property
    def shown(self) -> str:
        """What stands below the bar: the loss, its parts, and the rest."""
        parts = [name for name in self._shown if name not in _FORMATS]
        names = [name for name in (*_BEFORE, *parts, *_AFTER) if name in self._shown]
        return ", ".join(
            _FORMATS.get(name, f"{name} {{:.3f}}").format(self._shown[name]) for name in names
        )

    def show(self, **values: float) -> None:
        """Shows these from now on.

        Args:
            values: "loss", "training" (the accuracy on a batch, 0 to 1), "accuracy" (in tests),
                "images_per_s"; any other name is a part of the loss.
        """
        self._shown |= values
        self._progress.update(self._task, shown=self.shown)

    def advance(self, **values: float) -> None:
        """A step more; ``values`` as `show` takes them."""
        if values:
            self.show(**values)
        self._progress.advance(self._task)


class Bars(Progress):
    """The bars of what runs now; of what is over a line stays, so that a hundred runs fit.

    Args:
        console: where to. One that is no terminal gets the lines alone.
        enabled: False shows nothing.
    """

    def __init__(self, console: Console, enabled: bool) -> None:
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not enabled,
        )

    def get_renderables(self) -> Iterator[RenderableType]:
        """What is shown of each is below its bar: beside it there is no room for all losses."""
        yield self.make_tasks_table(self.tasks)
        yield from (Text(task.fields["shown"]) for task in self.tasks if task.fields["shown"])

    @contextmanager
    def run(self, description: str, total: int | None, completed: int = 0) -> Iterator[Bar]:
        """A bar of ``total`` steps (None: not known), of which ``completed`` are done already."""
        task = self.add_task(description, total=total, completed=completed, shown="")
        bar, start = Bar(self, task), perf_counter()
        try:
            yield bar
            took = timedelta(seconds=round(perf_counter() - start))
            self.note(", ".join(filter(None, (f"{description}: {took}", bar.shown))))
        finally:
            self.remove_task(task)

    def note(self, sentence: str) -> None:
        """Prints a line above the bars."""
        if not self.disable:
            self.console.print(Text(sentence))
