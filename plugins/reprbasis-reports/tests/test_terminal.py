"""The terminal reporter: live, plain, tables."""

import io
import time

import pytest
from reprbasis_reports.config import RichConfig
from reprbasis_reports.terminal import LiveProgress, Meter, PlainProgress, RichReporter, duration, measurements_tables, number
from rich.console import Console

from reprbasis.interfaces.reporter import RunRecord


def console(terminal=False, width=200):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, highlight=False, color_system=None)


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    return Clock


def test_rate_and_remaining_time_count_from_the_first_update(clock):
    meter = Meter(1000, "rows")
    clock.now = 1.0
    meter.update(500, {})  # resumed: this is not speed
    assert meter.rate is None
    clock.now = 3.0
    meter.update(520, {"loss": 0.25, "phase": "warm-up"})
    assert meter.rate == 10.0
    assert meter.remaining == 48.0
    assert (meter.amount(), meter.speed(), meter.left()) == ("520 / 1,000 rows", "10 rows/s", "48 s left")
    assert meter.shown() == "loss 0.250, phase warm-up"


def test_without_a_terminal_a_line_every_ten_seconds(clock):
    out = console()
    with PlainProgress(out, after=2, every=10).task("learn", total=100, unit="rows") as task:
        for second in range(1, 26):
            clock.now = float(second)
            task.update(second * 4, loss=0.5)
    lines = out.file.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0] == "  learn: 40 / 100 rows (40 %), 4 rows/s, 15 s left, loss 0.500"
    assert lines[-1] == "  learn: 100 rows in 25 s (4 rows/s), loss 0.500"


def test_short_work_is_not_shown(clock):
    out = console()
    with PlainProgress(out, after=2, every=10).task("quick", total=3) as task:
        task.update(3)
    assert out.file.getvalue() == ""


def test_unknown_total_and_exceptions(clock):
    out = console()
    progress = PlainProgress(out, after=2, every=1)

    def work():
        with progress.task("endless", unit="rows") as task:
            clock.now = 5.0
            task.update(7)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert out.file.getvalue().splitlines()[0] == "  endless: 7 rows"


def test_live_display_with_nested_work_starts_again_and_cleans_up():
    out = console(terminal=True)
    live = LiveProgress(out, after=0)
    for _ in range(2):
        with live.task("outer", total=2, unit="sites") as outer, live.task("inner [x]", total=10, unit="rows") as inner:
            inner.update(5, loss=1.0)
            outer.update(1)
            time.sleep(0.3)
    text = out.file.getvalue()
    assert "5 / 10 rows" in text
    assert "inner [x]: 5 rows in" in text
    assert not live._progress.live.is_started


def test_choice_of_display():
    reporter = RichReporter(RichConfig(), err=console(terminal=False))
    assert isinstance(reporter.progress(), PlainProgress)
    reporter = RichReporter(RichConfig(), err=console(terminal=True))
    assert isinstance(reporter.progress(), LiveProgress)


def test_a_whole_run(record):
    run, out, err = record(), console(), console()
    reporter = RichReporter(RichConfig(), console=out, err=err)
    reporter.run_started(run)
    for step in run.steps:
        reporter.step_started(step)
        reporter.step_ended(step)
    reporter.run_ended(run, None)
    told, shown = err.file.getvalue(), out.file.getvalue()
    assert "demo: 3 steps, 1 reused, seed 0" in told
    assert "2/3 basis (learn) ..." in told
    assert "2/3 basis done in 4 min 2 s" in told
    header = next(line for line in shown.splitlines() if "measured" in line)
    assert [c for c in ("global", "untrained", "random", "mean", "per-site") if c in header] == [
        "global",
        "untrained",
        "random",
        "mean",
        "per-site",
    ]
    assert "attn_out (30)" in shown
    assert "all resid.*" in shown
    assert "0.830 [0.820, 0.840]" in shown
    assert "DENSITY ALARM" in shown


def test_an_empty_run(tmp_path):
    out = console()
    reporter = RichReporter(RichConfig(), console=out, err=console())
    reporter.run_ended(RunRecord("none", tmp_path, (), {}, 0, ""), None)
    assert out.file.getvalue() == ""


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0.0, "0"),
        (0.12345, "0.123"),
        (42.0, "42"),
        (12345.6, "12,346"),
        (float("nan"), "–"),
        (1e-5, "1e-05"),
        (0.5, "0.500"),
        (123.4, "123"),
    ],
)
def test_numbers(x, text):
    assert number(x) == text


@pytest.mark.parametrize(("x", "text"), [(1.23, "1.2 s"), (59.6, "60 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations(x, text):
    assert duration(x) == text


@pytest.mark.parametrize("width", [60, 80, 900])
def test_many_conditions_are_legible_on_a_narrow_terminal(width):
    """Every number is printed once and whole, in as few tables as fit; a table has no row without a number."""
    rows = [{"name": f"measure_{i % 7}", "value": 100 + i, "condition": f"condition number {i}", "site": None} for i in range(30)]
    out = console(width=width)
    tables = list(measurements_tables("edit", rows, out))
    for table in tables:
        out.print(table)
    text = out.file.getvalue()
    assert all(text.count(str(row["value"])) == 1 for row in rows)
    assert all(text.count(row["condition"] + " ") or text.count(row["condition"] + "\n") for row in rows)
    assert "…" not in text
    assert (len(tables) == 1) == (width == 900)
    assert all(line.strip(" –0123456789") for line in text.splitlines() if line.strip())
