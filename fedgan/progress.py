"""What the person at the keyboard sees while a run goes on: rounds, local steps, losses, time left."""

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table


class LiveProgress:
    """A ``Watcher`` that draws on a terminal; elsewhere it prints one line a round."""

    def __init__(self, console: Console) -> None:
        """Draw on ``console`` from ``__enter__`` to ``__exit__``."""
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("time left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._steps: TaskID = self._bars.add_task("local steps", total=None, visible=False)
        self._rounds: TaskID = self._bars.add_task("rounds", total=None, visible=False)
        self._losses: dict[str, Mapping[str, float]] = {}
        self._arm, self._shown = "", 0
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        """Begin to draw, if the console is a terminal."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop drawing."""
        self._live.stop()

    def arm(self, name: str, *, rounds: int, done: int, steps: int) -> None:
        """Start the bars of an arm: ``steps`` local steps a round, over all its sites."""
        self._arm, self._losses, self._shown = name, {}, done
        self._bars.reset(self._rounds, total=rounds, completed=done, description=f"{name}: rounds", visible=True)
        self._bars.reset(
            self._steps, total=rounds * steps, completed=done * steps, description="local steps", visible=True
        )

    def step(self, site: str, losses: Mapping[str, float]) -> None:
        """Move the bars by one local step."""
        self._losses[site] = losses
        self._bars.advance(self._steps)

    def round(self, number: int, score: float | None) -> None:
        """Move the bars by one round, unless it was told before; off a terminal, print a line."""
        if number <= self._shown:
            return
        self._shown = number
        self._bars.update(self._rounds, completed=number)
        scored = "" if score is None else f", validation score of the round before {score:.3f}"
        if not self._console.is_terminal:
            self._console.print(f"{self._arm}: round {number} kept{scored}", highlight=False, soft_wrap=True)

    def stopped(self, how: str) -> None:
        """Say that the arm ended before its last round, and how."""
        self._console.print(f"{self._arm}: stopped {how}", highlight=False, soft_wrap=True)

    def _draw(self) -> Group:
        table = Table(box=None, pad_edge=False)
        names = sorted({name for losses in self._losses.values() for name in losses})
        for heading in ("loss", *names):
            table.add_column(heading.replace("_", " "), justify="left" if heading == "loss" else "right")
        for site, losses in sorted(self._losses.items()):
            table.add_row(f"site {site}", *(f"{losses[name]:.3f}" if name in losses else "-" for name in names))
        return Group(self._bars, table)
