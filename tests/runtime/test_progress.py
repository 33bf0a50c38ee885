"""Progress: a bar on a terminal, lines elsewhere, and the words that both say."""

import io
import sys
from collections.abc import Callable

import pytest

from t1_edge.cli.output import progress, say
from t1_edge.cli.pace import Pace


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _work(update: Callable[[int], None], clock: Clock, steps: int, count: int) -> None:
    for _ in range(count):
        clock.seconds += 1
        update(steps)


def test_a_pace_says_how_far_how_fast_and_how_long(clock: Clock) -> None:
    pace = Pace(8_000_000_000, in_bytes=True, now=clock)
    assert str(pace) == "0.0 of 8.0 GB"
    _work(pace.add, clock, 110_000_000, 1)
    assert str(pace) == "0.1 of 8.0 GB"
    _work(pace.add, clock, 110_000_000, 28)
    assert str(pace) == "3.2 of 8.0 GB, 110 MB/s, 44 s left"


@pytest.mark.parametrize(
    ("total", "step", "in_bytes", "text"),
    [
        (292, 8, False, "16 of 292, 8/s, 35 s left"),
        (500, 1, False, "2 of 500, 1/s, 8 min 18 s left"),
        (90_000, 1234, False, "2468 of 90000, 1,234/s, 1 min 11 s left"),
        (540_000_000, 60_000, True, "0 of 540 MB, 0 MB/s, 2 h 29 min left"),
        (80_000_000_000, 2_000_000_000, True, "4.0 of 80.0 GB, 2.0 GB/s, 38 s left"),
    ],
)
def test_units_are_for_people(
    clock: Clock, total: int, step: int, in_bytes: bool, text: str
) -> None:
    pace = Pace(total, in_bytes=in_bytes, now=clock)
    _work(pace.add, clock, step, 2)
    assert str(pace) == text


def test_what_was_there_already_is_not_fast(clock: Clock) -> None:
    pace = Pace(1000, in_bytes=False, now=clock)
    pace.add(600)
    _work(pace.add, clock, 10, 10)
    assert pace.rate == 10


def test_the_rate_is_of_the_last_half_minute(clock: Clock) -> None:
    pace = Pace(10_000, in_bytes=False, now=clock)
    _work(pace.add, clock, 100, 60)
    _work(pace.add, clock, 1, 31)
    assert pace.rate == 1


def test_without_a_terminal_there_are_lines(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress(8_000_000_000, "quantizing", in_bytes=True, now=clock) as update:
        _work(update, clock, 100_000_000, 4)
        assert capsys.readouterr().err == ""
        _work(update, clock, 100_000_000, 8)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "quantizing 0.5 of 8.0 GB, 100 MB/s, 1 min 15 s left",
        "quantizing 1.0 of 8.0 GB, 100 MB/s, 1 min 10 s left",
    ]


class Terminal(io.StringIO):
    """Text that was written to a terminal."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_there_is_a_bar(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress(8_000_000_000, "quantizing", in_bytes=True, now=clock) as update:
        _work(update, clock, 1_000_000_000, 4)
        say("a line of talk")
    drawn = screen.getvalue().replace("\x1b[?25l", "").replace("\r", "\n").splitlines()
    bar = "quantizing  [##########----------]  4.0 of 8.0 GB, 1.0 GB/s, 4 s left"
    assert bar in [line.rstrip() for line in drawn]
    assert "\x1b[Ka line of talk" in drawn
    assert all(len(line) < 80 for line in drawn)
