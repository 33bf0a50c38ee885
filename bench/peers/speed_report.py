"""What `peers.speed` found: samples to ratios, and those beside what t1-edge wants to reach.

In every round everybody does the same share, one after another, so a ratio is taken in each round,
and the median of the rounds counts: what slows a machine down for a while slows both.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from peers.speed_wire import Work
from t1_edge.build import Format
from t1_edge_bench.table import table

Measured = Work | Literal["start"]
"""A work, or a fresh process up to its first vector."""

ORDINARY: Final = "llama-cpp-python"
TWO_PHASES: Final = "llama.cpp, two phases"
GRAPH: Final = "ONNX Runtime, builder's graph"
OWN: Final[Mapping[Format, str]] = {"onnx": "t1-edge, onnx", "gguf": "t1-edge, gguf"}

LEAST_COSINE: Final = 0.8
"""To the float reference, on average: below it a contestant computes something else. Plain Q4_0
stays at .85 behind thoughts of sixteen tokens, which part at the first that rounding flips."""

_TITLES: Final[Mapping[Measured, str]] = {
    "passages": "passages",
    "facts": "facts",
    "query": "a query, p50",
    "queries": "eight queries",
    "start": "fresh process to vector",
}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """How many times as fast as a peer t1-edge has to be.

    Attributes:
        work: At what.
        peer: The peer's name.
        bar: At least.
        goal: What it aims at.
    """

    work: Work
    peer: str
    bar: float
    goal: float


BARS: Final = (
    Bar(work="passages", peer=ORDINARY, bar=1.7, goal=2.2),
    Bar(work="passages", peer=TWO_PHASES, bar=1.1, goal=1.5),
    Bar(work="passages", peer=GRAPH, bar=1.25, goal=1.7),
    Bar(work="facts", peer=TWO_PHASES, bar=1.5, goal=3.0),
    Bar(work="query", peer=ORDINARY, bar=1.5, goal=2.5),
    Bar(work="queries", peer=ORDINARY, bar=3.0, goal=5.0),
)

START_BAR: Final = 1.0
START_GOAL: Final = 0.5
"""Seconds."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a contestant took for its share in a round.

    Attributes:
        contestant: Its name.
        work: What it did.
        round: From 0.
        seconds: Of each part that was timed by itself.
        tokens: Of all the share's documents, `<emb_token>` included; 0 where a thought is written.
    """

    contestant: str
    work: Measured
    round: int
    seconds: Sequence[float]
    tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Near:
    """Whether a contestant computes what it should.

    Attributes:
        contestant: Its name.
        work: What it did.
        mean: Mean cosine of its vectors to the float reference's.
        least: The worst.
    """

    contestant: str
    work: Measured
    mean: float
    least: float


def ratios(samples: Sequence[Sample], work: Measured, peer: str, own: str) -> list[float]:
    """How many times as fast as a peer t1-edge was, round by round.

    Args:
        samples: Of the whole run.
        work: At what.
        peer: The peer's name.
        own: The name that t1-edge has with one of its engines.
    """
    theirs, ours = _by_round(samples, work, peer), _by_round(samples, work, own)
    return [theirs[at] / ours[at] for at in sorted(theirs.keys() & ours.keys())]


def figures(samples: Sequence[Sample], near: Sequence[Near]) -> str:
    """A table of what everybody reached: tokens a second, or milliseconds."""
    cosines = {(one.work, one.contestant): one for one in near}
    rows = []
    for work, title in _TITLES.items():
        for name in dict.fromkeys(one.contestant for one in samples if one.work == work):
            found = [one for one in samples if (one.work, one.contestant) == (work, name)]
            cells = [f"{title}: {name}", *_spread(found)]
            beside = cosines.get((work, name))
            rows.append([*cells, *(_cosine_cells(beside) if beside else ("", ""))])
    header = ["work: contestant", "median", "least", "most", "", "mean cosine", "worst"]
    return table(header, rows)


def comparison(samples: Sequence[Sample], near: Sequence[Near]) -> str:
    """A table of how many times as fast t1-edge is, beside bars and goals."""
    wrong = {(one.work, one.contestant) for one in near if not one.mean >= LEAST_COSINE}
    rows = []
    for bar in BARS:
        cells = [f"{_TITLES[bar.work]}: times {bar.peer}"]
        for own in OWN.values():
            found = ratios(samples, bar.work, bar.peer, own)
            false = wrong & {(bar.work, bar.peer), (bar.work, own)}
            cells.append("wrong vectors" if false else _ratio_cell(found))
        rows.append([*cells, f"{bar.bar:.2f}", f"{bar.goal:.2f}"])
    start = [_start_cell(samples, own) for own in OWN.values()]
    rows.append([f"{_TITLES['start']}, s", *start, f"{START_BAR:.2f}", f"{START_GOAL:.2f}"])
    return table(["t1-edge", *OWN, "bar", "goal"], rows)


def _by_round(samples: Sequence[Sample], work: Measured, name: str) -> dict[int, float]:
    """Seconds of what is timed by itself, the median of a round."""
    return {
        one.round: statistics.median(one.seconds)
        for one in samples
        if (one.work, one.contestant) == (work, name)
    }


def _spread(samples: Sequence[Sample]) -> list[str]:
    """Median, least and most, and their unit: rates of rounds, or times of all that was timed."""
    if samples[0].tokens:
        values = [one.tokens / sum(one.seconds) for one in samples]
        unit = "tokens/s"
    else:
        values = [1000 * seconds for one in samples for seconds in one.seconds]
        unit = "ms"
    found = (statistics.median(values), min(values), max(values))
    return [*(f"{value:.0f}" for value in found), unit]


def _cosine_cells(near: Near) -> tuple[str, str]:
    return f"{near.mean:.4f}", f"{near.least:.4f}"


def _ratio_cell(found: Sequence[float]) -> str:
    if not found:
        return ""
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def _start_cell(samples: Sequence[Sample], own: str) -> str:
    found = _by_round(samples, "start", own)
    return f"{statistics.median(found.values()):.2f}" if found else ""
