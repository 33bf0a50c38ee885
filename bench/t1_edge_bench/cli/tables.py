"""The figures of `t1-edge bench` as tables for a terminal; a column or a line for each row."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from t1_edge_bench.table import table

if TYPE_CHECKING:
    from t1_edge_bench.latency import LatencyRow
    from t1_edge_bench.profiling import ProfileRow
    from t1_edge_bench.quality import QualityRow
    from t1_edge_bench.soak import SoakRow

_Row = TypeVar("_Row")


def quality_table(rows: "Sequence[QualityRow]") -> str:
    """What each system found."""
    header = [
        "system",
        "budget",
        "settle",
        "nDCG@10",
        "recall@100",
        "queries",
        "thought tokens",
        "s/query",
    ]
    return table(
        header,
        [
            [
                row.system,
                "" if row.budget is None else str(row.budget),
                "" if row.settle is None else f"{row.settle:g}",
                f"{row.ndcg:.4f}",
                "" if row.recall is None else f"{row.recall:.4f}",
                str(row.queries),
                "" if row.thought_tokens is None else f"{row.thought_tokens:.1f}",
                "" if row.seconds_a_query is None else f"{row.seconds_a_query:.3f}",
            ]
            for row in rows
        ],
    )


def latency_table(rows: "Sequence[LatencyRow]") -> str:
    """What each engine costs."""
    figures: list[tuple[str, Callable[[LatencyRow], str]]] = [
        ("load, s", lambda r: f"{r.load:.2f}"),
        ("prefill, tokens/s", lambda r: f"{r.prefill_tokens:,.0f}"),
        ("thinking, tokens/s", lambda r: f"{r.thinking_tokens:,.0f}"),
        ("thinking 8 at once, tokens/s", lambda r: f"{r.thinking_tokens_8:,.0f}"),
        ("memory bandwidth used", lambda r: f"{r.bandwidth_share:.0%}"),
        ("memory bandwidth, GB/s", lambda r: f"{r.read_bandwidth / 1e9:.1f}"),
        ("weights, MB", lambda r: f"{r.weight_bytes / 1e6:,.0f}"),
        ("peak resident, MB", lambda r: f"{r.peak_resident / 1e6:,.0f}"),
    ]
    lines = _lines(figures, rows)
    for budget in rows[0].query_p50:
        times = [f"{r.query_p50[budget] * 1e3:.0f} / {r.query_p95[budget] * 1e3:.0f}" for r in rows]
        lines.append([f"query, budget {budget}, p50 / p95, ms", *times])
    return table(["", *(row.library for row in rows)], lines)


def profile_table(rows: "Sequence[ProfileRow]") -> str:
    """Shares of the time that a pass's operations take, and what passes take."""
    parts = dict.fromkeys(part for row in rows for part in row.parts)
    lines = [[part, *(_share(row, part) for row in rows)] for part in parts]
    figures: list[tuple[str, Callable[[ProfileRow], str]]] = [
        ("all operations, ms", lambda r: f"{sum(r.parts.values()) * 1e3:,.1f}"),
        ("a pass, watched, ms", lambda r: f"{r.watched * 1e3:,.1f}"),
        ("a pass alone, ms", lambda r: f"{r.alone * 1e3:,.1f}"),
        ("texts or thoughts at once", lambda r: str(r.rows)),
        ("their tokens in a pass", lambda r: str(r.tokens)),
        ("threads", lambda r: str(r.threads)),
    ]
    lines += _lines(figures, rows)
    return table(["", *(_what(row) for row in rows)], lines)


def soak_table(rows: "Sequence[SoakRow]") -> str:
    """What memory each engine's work left."""
    figures: list[tuple[str, Callable[[SoakRow], str]]] = [
        ("seconds", lambda r: f"{r.seconds:,.0f}"),
        ("calls", lambda r: f"{sum(r.operations.values()):,}"),
        *(_calls(kind) for kind in rows[0].operations),
        ("errors", lambda r: str(len(r.errors))),
        ("resident when warm, MB", lambda r: f"{r.warm / 1e6:,.1f}"),
        ("resident at the end, MB", lambda r: f"{r.end / 1e6:,.1f}"),
        ("growth", lambda r: f"{r.growth:.2%}"),
        ("open files when warm, at the end", lambda r: f"{r.files[0]:g}, {r.files[1]:g}"),
        ("peak resident, MB", lambda r: f"{r.peak_resident / 1e6:,.0f}"),
    ]
    lines = _lines(figures, rows)
    return table(["", *(row.library for row in rows)], lines)


def _lines(
    figures: "Sequence[tuple[str, Callable[[_Row], str]]]", rows: "Sequence[_Row]"
) -> list[list[str]]:
    """A line for each figure: its name, and what it is of each row."""
    return [[name, *(read(row) for row in rows)] for name, read in figures]


def _what(row: "ProfileRow") -> str:
    engine = row.library.split()[0]
    return f"{engine} {row.work}" + (", documents' graph" if row.graph == "documents" else "")


def _share(row: "ProfileRow", part: str) -> str:
    return f"{row.parts[part] / sum(row.parts.values()):.0%}" if part in row.parts else ""


def _calls(kind: str) -> "tuple[str, Callable[[SoakRow], str]]":
    return f"  {kind}", lambda row: f"{row.operations.get(kind, 0):,}"
