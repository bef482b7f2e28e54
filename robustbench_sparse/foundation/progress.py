"""Progress as the work reports it, and its display in a terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from robustbench_sparse.foundation.texts import printable

if TYPE_CHECKING:
    from rich.console import Console


class Task(Protocol):
    """One bar."""

    def advance(self, amount: int, info: str = "") -> None:
        """So many more units are done; ``info`` stands behind the bar."""
        ...

    def close(self) -> None:
        """The bar's work is over."""
        ...


class Progress(Protocol):
    """Where progress goes."""

    def start(self, title: str, total: int, unit: str, done: int = 0) -> Task:
        """A new bar of ``total`` units, ``done`` of which were finished earlier."""
        ...

    def note(self, text: str) -> None:
        """A line that stays."""
        ...


class _Nothing:
    def advance(self, amount: int, info: str = "") -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Silent:
    """No display: the default in Python code."""

    def start(self, title: str, total: int, unit: str, done: int = 0) -> Task:
        """A bar nobody sees."""
        return _Nothing()

    def note(self, text: str) -> None:
        """Nothing."""


class RichProgress:
    """Bars with throughput and time left; in a file or pipe, one line per finished bar. A context manager."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

        def text(template: str) -> TextColumn:
            return TextColumn(template, markup=False)  # a label in brackets is no style

        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            text("{task.description}"),
            BarColumn(bar_width=24),
            text("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
            text("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            text("{task.fields[info]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> RichProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, title: str, total: int, unit: str, done: int = 0) -> Task:
        """A new bar."""
        return _Bar(self, title, total, unit, done)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._console.print(printable(text), markup=False, highlight=False, emoji=False, soft_wrap=True)


class _Bar:
    def __init__(self, show: RichProgress, title: str, total: int, unit: str, done: int) -> None:
        title, unit = printable(title), printable(unit)
        self._show, self._title, self._unit, self._total = show, title, unit, total
        self._done, self._began, self._info = 0, time.perf_counter(), ""
        self._id = show._progress.add_task(title, total=total, completed=done, unit=unit, rate="", info="")

    def advance(self, amount: int, info: str = "") -> None:
        """So many more units are done."""
        self._done += amount
        self._info = printable(info) if info else self._info
        self._show._progress.update(self._id, advance=amount, rate=self._rate(), info=self._info)

    def _rate(self) -> str:
        seconds = time.perf_counter() - self._began
        return f"{self._done / seconds:.4g} {self._unit}/s" if seconds > 0 else ""

    def close(self) -> None:
        """Remove the bar; leave a line where there is no terminal."""
        seconds = time.perf_counter() - self._began
        self._show._progress.remove_task(self._id)
        if not self._show._console.is_terminal and self._done:
            self._show.note(
                f"{self._title}: {self._done} {self._unit} in {seconds:.1f} s ({self._rate()}) {self._info}"
            )
