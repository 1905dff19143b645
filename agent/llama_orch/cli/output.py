"""What commands print: tables and lines for people, JSON for programs, bars only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel
from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

# Results go to stdout and everything else to stderr, so that `--json | jq` gets JSON alone.
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

# Rows are never folded: in a narrow terminal a long line is easier to read than narrow columns.
_WIDTH = 10_000
_EMPTY = (None, "", "-", "0")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_STYLES = {
    **dict.fromkeys(("active", "idle", "ready", "succeeded", "ok"), "green"),
    **dict.fromkeys(("busy", "provisioning", "loading", "downloading", "running", "queued", "changed"), "yellow"),
    **dict.fromkeys(("draining", "removing", "cancelling", "verifying"), "yellow"),
    **dict.fromkeys(("failed", "unreachable", "corrupt"), "red"),
}


def printable(text: str) -> str:
    """`text` without control characters: what a service or a model says must not steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def line(text: str = "", *, style: str = "", console: Console | None = None) -> None:
    """One line as it is: neither folded nor read as markup."""
    (console or out).print(Text(printable(text), style=style), soft_wrap=True)


def print_json(value: BaseModel | Sequence[BaseModel] | dict[str, Any]) -> None:
    """A result for programs: the API's own JSON, indented."""
    print(json.dumps(as_data(value), indent=2))


def print_json_line(value: BaseModel) -> None:
    """One event of a stream for programs: one line of JSON, at once."""
    print(json.dumps(as_data(value)), flush=True)


def as_data(value: BaseModel | Sequence[BaseModel] | dict[str, Any]) -> Any:
    """What `json` writes of it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return value if isinstance(value, dict) else [item.model_dump(mode="json") for item in value]


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | None]], *, nothing: str) -> None:
    """Rows under headings; the sentence `nothing` where there is no row. A terminal is spared empty columns."""
    kept = list(rows)
    if not kept:
        line(nothing, console=err)
        return
    shown = [n for n in range(len(columns)) if not out.is_terminal or any(row[n] not in _EMPTY for row in kept)]
    table = Table(*(columns[n] for n in shown), box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.show_edge = False
    for row in kept:
        table.add_row(*(_cell(row[n]) for n in shown))
    terminal = out.is_terminal
    Console(file=out.file, width=_WIDTH, highlight=False, force_terminal=terminal).print(table, soft_wrap=terminal)


def _cell(value: str | None) -> RenderableType:
    text = printable(value or "-").replace("\n", " ")
    return Text(text, style=_STYLES.get(text, ""), no_wrap=True)


def size(count: int | float | None) -> str:
    """Bytes in a unit that people read."""
    if count is None:
        return "-"
    value = float(count)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def ago(moment: datetime | None) -> str:
    """How long ago, in the largest unit that fits."""
    if moment is None:
        return "-"
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    for length, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"


class Meter:
    """Progress of one thing: a bar on a terminal, a line for each tenth of the way elsewhere.

    With `is_bytes` it also shows amount and rate. `note` prints a line above the bar; where such lines tell of the
    progress themselves, `tenths` is off.
    """

    def __init__(
        self, label: str, *, is_bytes: bool = False, tenths: bool = True, console: Console | None = None
    ) -> None:
        self._console = console or err
        self._label = printable(label)
        self._last = -1
        self._tenths = tenths
        self._progress: Progress | None = None
        if self._console.is_terminal:
            end = (DownloadColumn(binary_units=True), TransferSpeedColumn()) if is_bytes else ()
            text = TextColumn("{task.description}", markup=False)
            percentage = TextColumn("{task.percentage:>3.0f} %")
            self._progress = Progress(
                SpinnerColumn(), text, BarColumn(), percentage, *end, console=self._console, transient=True
            )
            self._task = self._progress.add_task(self._label, total=None)

    def __enter__(self) -> Self:
        if self._progress:
            self._progress.start()
        else:
            self.note(f"{self._label} …")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()

    def update(self, done: float, total: float | None, label: str | None = None) -> None:
        """Now at `done` of `total`, both in bytes or in percent."""
        if label:
            self._label = printable(label)
        if self._progress:
            self._progress.update(self._task, completed=done, total=total, description=self._label)
            return
        tenth = int(done * 10 // total) if total else 0
        if self._tenths and tenth > self._last and tenth:
            self.note(f"{self._label}: {tenth * 10} %")
        self._last = max(self._last, tenth)

    def note(self, text: str, *, style: str = "") -> None:
        """A line that stays."""
        line(text, style=style, console=self._console)


def is_interactive() -> bool:
    """Whether a person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()
