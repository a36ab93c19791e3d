"""Reporter `rich`: live progress on a terminal, plain lines elsewhere, and summary tables when the run is over."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from reprbasis.interfaces.reporter import Progress as ProgressProtocol
from reprbasis.interfaces.reporter import Reporter, RunRecord, StepRecord
from reprbasis.interfaces.reporter import Task as TaskProtocol

from .config import RichConfig
from .findings import Cell, Summary, saved, summary

if TYPE_CHECKING:
    from reprbasis.registry import Registry

WINDOW = 30.0
"""Seconds over which the rate is measured."""
WIDE = 130
"""Columns of a terminal from which on intervals are printed too."""
FIGURES = 5
"""At most this many figures (loss, L0) on a progress line."""


class Meter:
    """Rate and remaining time of one piece of work, from its last `WINDOW` seconds."""

    def __init__(self, total: float | None, unit: str) -> None:
        self.total, self.unit, self.began = total, unit, time.monotonic()
        self.done = 0.0
        self.figures: Mapping[str, float | str] = {}
        self._seen: deque[tuple[float, float]] = deque()

    def update(self, done: float, figures: Mapping[str, float | str]) -> None:
        """Note what is done; the first note may include work of an earlier run, so rates count from it."""
        now = time.monotonic()
        self.done = done
        if figures:
            self.figures = figures
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] > WINDOW:
            self._seen.popleft()

    @property
    def elapsed(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self.began

    @property
    def rate(self) -> float | None:
        """Units per second; None while unknown."""
        if len(self._seen) < 2:
            return None
        (t0, d0), (t1, d1) = self._seen[0], self._seen[-1]
        return (d1 - d0) / (t1 - t0) if t1 > t0 and d1 > d0 else None

    @property
    def remaining(self) -> float | None:
        """Seconds to go; None while unknown."""
        if self.total is None or self.rate is None:
            return None
        since = time.monotonic() - self._seen[-1][0]
        return max((self.total - self.done) / self.rate - since, 0.0)

    def amount(self) -> str:
        """`12,000 / 60,000 tokens`."""
        total = "" if self.total is None else f" / {self.total:,.0f}"
        return f"{self.done:,.0f}{total} {self.unit}"

    def speed(self) -> str:
        """`640 tokens/s`, empty while unknown."""
        return "" if self.rate is None else f"{number(self.rate)} {self.unit}/s"

    def left(self) -> str:
        """`2 min 10 s left`, empty while unknown."""
        return "" if self.remaining is None else f"{duration(self.remaining)} left"

    def shown(self) -> str:
        """`loss 0.31, l0 42`."""
        some = list(self.figures.items())[:FIGURES]
        return ", ".join(f"{k.replace('_', ' ')} {v if isinstance(v, str) else number(v)}" for k, v in some)


def number(x: float) -> str:
    """About three significant digits."""
    if not math.isfinite(x):
        return "–" if math.isnan(x) else str(x)
    if x == int(x) or abs(x) >= 1000:
        return f"{x:,.0f}"
    return f"{x:.3g}" if abs(x) < 1e-3 else f"{x:#.3g}".rstrip(".")


def duration(seconds: float) -> str:
    """`4.2 s`, `48 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


class RichReporter(Reporter[RichConfig]):
    """Shows a run in the terminal. Progress goes to standard error, results to standard output."""

    def __init__(self, config: RichConfig, *, console: Console | None = None, err: Console | None = None) -> None:
        super().__init__(config)
        self.console = console or Console(highlight=False)
        self.err = err or Console(stderr=True, highlight=False)
        self._place: dict[str, str] = {}

    def progress(self) -> ProgressProtocol:
        """A live display on a terminal; elsewhere a line every `every` seconds."""
        if self.err.is_terminal and not self.err.is_dumb_terminal:
            return LiveProgress(self.err, self.config.after)
        return PlainProgress(self.err, self.config.after, self.config.every)

    def run_started(self, run: RunRecord) -> None:
        """Say what will be done."""
        self._place = {s.name: f"{i}/{len(run.steps)}" for i, s in enumerate(run.steps, 1)}
        reused = sum(s.status == "reused" for s in run.steps)
        tail = f", {reused} reused" if reused else ""
        self.err.print(f"[bold]{escape(run.name)}[/]: {len(run.steps)} step{'s' * (len(run.steps) != 1)}{tail}, seed {run.seed}")

    def step_started(self, step: StepRecord) -> None:
        """One line."""
        if step.status != "reused":
            self.err.print(f"{self._label(step)} ({escape(step.component)}) ...")

    def step_ended(self, step: StepRecord) -> None:
        """One line, and the error if there is one."""
        marks = {"done": f"[green]done[/] in {duration(step.seconds)}", "reused": "[cyan]reused[/]",
                 "failed": "[red]failed[/]", "interrupted": "[yellow]interrupted[/]"}
        self.err.print(f"{self._label(step)} {marks.get(step.status, step.status)}")

    def _label(self, step: StepRecord) -> str:
        return f"[dim]{self._place.get(step.name, '')}[/] [bold]{escape(step.name)}[/]"

    def run_ended(self, run: RunRecord, registry: Registry) -> None:
        """The measurements, every number beside its controls."""
        if not self.config.tables:
            return
        for left in saved(run):
            if rows := left.rows("measurements"):
                for table in measurements_tables(left.step.name, rows, self.console):
                    self.console.print(table)
            for note in left.rows("notes"):
                alarm = "alarm" in note.lower() or "warning" in note.lower()
                self.console.print(Text(note, style="bold red" if alarm else "dim"))
            if left.problem:
                self.console.print(Text(left.problem, style="red"))


def measurements_tables(title: str, measurements: list[Mapping[str, object]], console: Console) -> list[Table]:
    """One table if the console is wide enough for all conditions; otherwise tables of as many as fit each, or, with conditions as
    rows, of as many measures as fit, whichever is shorter.
    """
    found = summary(measurements)
    by_measure = _split(title, found, "measured", console)
    if len(by_measure) == 1:
        return by_measure
    turned: Summary = {}
    for name, groups in found.items():
        for group, cells in groups.items():
            for condition, cell in cells.items():
                turned.setdefault(condition, {}).setdefault(group, {})[name] = cell
    by_condition = _split(title, turned, "condition", console)
    return min(by_measure, by_condition, key=lambda tables: sum(table.row_count for table in tables))


def _split(title: str, found: Summary, what: str, console: Console) -> list[Table]:
    ranges = console.width >= WIDE
    count = Counter(column for groups in found.values() for cells in groups.values() for column in cells)
    left, tables = sorted(count, key=lambda c: -count[c]), []
    while left:
        fitting = 1
        while fitting < len(left) and _fits(measurements_table(title, found, left[:fitting + 1], what, ranges=ranges), console):
            fitting += 1
        tables.append(measurements_table(title, found, left[:fitting], what, ranges=ranges, last=fitting == len(left)))
        left = left[fitting:]
    return tables


def _fits(table: Table, console: Console) -> bool:
    return console.measure(table, options=console.options.update(max_width=10_000)).maximum <= console.width


def measurements_table(title: str, found: Summary, columns: Sequence[str], what: str, *, ranges: bool = True,
                       last: bool = True) -> Table:
    """Rows: what was measured (or the condition) and where; columns: conditions (or measures). Several sites of a family: median
    and range.
    """
    told = "Sites of one family: median" + (" [smallest, largest]. Single numbers: 95 % interval in brackets." if ranges
                                            else ". Intervals and n are in the HTML report.")
    table = Table(title=f"{escape(title)}: measurements", title_justify="left", pad_edge=False, header_style="bold",
                  caption=Text(told) if last else None, caption_justify="left", box=SIMPLE_HEAD)
    table.add_column(what)
    table.add_column("at")
    for column in columns:
        table.add_column(escape(column.replace("_", " ") or "value"), justify="right")
    for name, all_groups in found.items():
        groups = {key: row for key, row in all_groups.items() if any(c in row for c in columns)}
        for i, ((group, sites), row) in enumerate(groups.items()):
            label = f"{group} ({sites})" if sites > 1 else group
            table.add_row(escape(name.replace("_", " ") or "value") if i == 0 else "", escape(label),
                          *(_cell(row.get(c), ranges) for c in columns), end_section=i == len(groups) - 1 and len(all_groups) > 1)
    return table


def _cell(cell: Cell | None, ranges: bool) -> Text:
    if cell is None:
        return Text("–", style="dim")
    low, high = (cell.low, cell.high) if len(cell.values) == 1 else (min(cell.values), max(cell.values))
    text = Text(number(cell.middle))
    return text if low is None or high is None or not ranges else text.append(f" [{number(low)}, {number(high)}]", style="dim")


class _MeterColumn(ProgressColumn):
    def __init__(self, part: str, style: str = "") -> None:
        super().__init__()
        self.part, self.style = part, style

    def render(self, task: Task) -> Text:
        """One text of the task's meter."""
        return Text(getattr(task.fields["meter"], self.part)(), style=self.style)


class _Late(Progress):
    """A rich progress display that shows a task only once it has lasted `after` seconds."""

    after = 2.0

    def make_tasks_table(self, tasks: object) -> Table:
        """The table of the tasks that have lasted long enough."""
        return super().make_tasks_table([t for t in self.tasks if t.fields["meter"].elapsed >= self.after])


class LiveProgress:
    """Live bars; a finished piece of work leaves one line behind."""

    def __init__(self, console: Console, after: float) -> None:
        self.console, self.after = console, after
        self._open = 0
        self._lock = threading.Lock()
        self._progress = self._display()

    def _display(self) -> _Late:
        display = _Late(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24),
                        _MeterColumn("amount"), _MeterColumn("speed", "cyan"), _MeterColumn("left", "green"),
                        _MeterColumn("shown", "dim"),
                        console=self.console, transient=True, refresh_per_second=5)
        display.after = self.after
        return display

    @contextmanager
    def task(self, name: str, total: float | None = None, unit: str = "it") -> Iterator[TaskProtocol]:
        """Show a piece of work while the block runs."""
        meter = Meter(total, unit)
        with self._lock:
            if self._open == 0:
                self._progress = self._display()
                self._progress.start()
            self._open += 1
        display = self._progress
        handle = display.add_task(escape(name), total=total, meter=meter)
        try:
            yield _LiveTask(display, handle, meter)
        finally:
            display.remove_task(handle)
            with self._lock:
                self._open -= 1
                if self._open == 0:
                    display.stop()
            if meter.elapsed >= self.after:
                self.console.print(Text("  " + ended(name, meter), style="dim"))


class _LiveTask:
    def __init__(self, progress: Progress, handle: TaskID, meter: Meter) -> None:
        self._progress, self._handle, self._meter = progress, handle, meter

    def update(self, done: float, **figures: float | str) -> None:
        """Move the bar."""
        self._meter.update(done, figures)
        self._progress.update(self._handle, completed=done)


class PlainProgress:
    """Plain lines, at most one every `every` seconds for each piece of work."""

    def __init__(self, console: Console, after: float, every: float) -> None:
        self.console, self.after, self.every = console, after, every

    @contextmanager
    def task(self, name: str, total: float | None = None, unit: str = "it") -> Iterator[TaskProtocol]:
        """Print lines while the block runs, and one at its end."""
        meter = Meter(total, unit)
        try:
            yield _PlainTask(self, name, meter)
        finally:
            if meter.elapsed >= self.after:
                self.line(ended(name, meter))

    def line(self, text: str) -> None:
        """Print one line, unwrapped."""
        self.console.print(Text("  " + text), soft_wrap=True)


class _PlainTask:
    def __init__(self, progress: PlainProgress, name: str, meter: Meter) -> None:
        self._progress, self._name, self._meter = progress, name, meter
        self._last = time.monotonic()

    def update(self, done: float, **figures: float | str) -> None:
        """Print a line if the last one is long ago."""
        meter = self._meter
        meter.update(done, figures)
        if time.monotonic() - self._last >= self._progress.every:
            self._last = time.monotonic()
            share = f" ({100 * done / meter.total:.0f} %)" if meter.total else ""
            parts = [f"{self._name}: {meter.amount()}{share}", meter.speed(), meter.left(), meter.shown()]
            self._progress.line(", ".join(filter(None, parts)))


def ended(name: str, meter: Meter) -> str:
    """`learn: 4,000,000 rows in 3 min 20 s (20,000 rows/s), loss 0.31`."""
    rate = meter.done / meter.elapsed if meter.elapsed else 0.0
    head = f"{name}: {meter.done:,.0f} {meter.unit} in {duration(meter.elapsed)} ({number(rate)} {meter.unit}/s)"
    return ", ".join(filter(None, [head, meter.shown()]))
