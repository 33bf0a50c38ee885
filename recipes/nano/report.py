"""The tables and claims of docs/nano.md, from what evaluate.py measured.

python -m recipes.nano.report results.jsonl --build nano --control NAME --float NAME
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import click
import msgspec
import numpy as np

from recipes.nano.evaluate import BOTH, SHUFFLED, Measured, read, system_name
from t1_edge_bench.search import EXPANDED, HYBRID, THINKING_HYBRID
from t1_edge_bench.table import table

RESAMPLES: Final = 10_000


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """How much better one system is than another on the same queries.

    Attributes:
        dataset: The data set.
        better: The first system.
        than: The second.
        mean: Difference of nDCG@10.
        low: 2.5th percentile of the resampled difference.
        high: 97.5th.
    """

    dataset: str
    better: str
    than: str
    mean: float
    low: float
    high: float


def compare(measured: Sequence[Measured], better: str, than: str) -> list[Difference]:
    """Paired bootstrap over queries, on every data set that has both systems."""
    found = {(m.dataset, m.system): np.array(m.ndcg) for m in measured}
    differences = []
    for dataset, system in found:
        if system == better and (dataset, than) in found:
            apart = found[dataset, better] - found[dataset, than]
            rng = np.random.default_rng(0)
            drawn = rng.integers(0, len(apart), (RESAMPLES, len(apart)))
            low, high = np.percentile(apart[drawn].mean(axis=1), [2.5, 97.5])
            differences.append(
                Difference(
                    dataset=dataset,
                    better=better,
                    than=than,
                    mean=float(apart.mean()),
                    low=float(low),
                    high=float(high),
                )
            )
    return differences


def claims(
    measured: Sequence[Measured], build: str, control: str | None, float_build: str | None
) -> Iterator[tuple[str, str]]:
    """Pairs of systems to compare, the one that should be better first."""
    direct = system_name(build, 0)
    yield direct, "bm25"
    yield direct, "all-MiniLM-L6-v2"
    for budget in budgets(measured, build):
        own = system_name(build, budget)
        if budget:
            yield own, direct
        if control:
            yield own, system_name(control, 0)
        if float_build:
            yield own, system_name(float_build, budget)
        hybrid = system_name(build, budget, THINKING_HYBRID if budget else HYBRID)
        yield hybrid, direct
        yield hybrid, system_name(build, budget, EXPANDED) if budget else "bm25"
        if budget:
            without = system_name(build, 0, HYBRID)
            yield hybrid, without
            yield system_name(build, budget, BOTH), without
            yield system_name(build, budget, SHUFFLED), direct
            yield system_name(build, budget, EXPANDED), "bm25"


def budgets(measured: Sequence[Measured], build: str) -> list[int]:
    """Those at which a build was measured, in order."""
    found = {
        int(m.system.removeprefix(f"{build} at ").partition(":")[0])
        for m in measured
        if m.system.startswith(f"{build} at ")
    }
    return sorted(found)


def _show(measured: Sequence[Measured]) -> str:
    names = list(dict.fromkeys(m.dataset for m in measured))
    cells: dict[str, dict[str, str]] = {}
    for m in measured:
        cells.setdefault(m.system, {})[m.dataset] = f"{m.mean:.3f}"
    rows = [[system, *(found.get(n, "") for n in names)] for system, found in cells.items()]
    return table(["system", *names], rows)


def _show_curve(measured: Sequence[Measured], build: str) -> str:
    found = {(m.dataset, m.system): m for m in measured}
    names = list(dict.fromkeys(m.dataset for m in measured))
    rows = []
    for budget in budgets(measured, build):
        at = [found.get((name, system_name(build, budget))) for name in names]
        cells = [
            f"{m.mean:.3f}, {1000 * (m.seconds or 0):.0f} ms, {m.thought_tokens:.1f}" if m else ""
            for m in at
        ]
        rows.append([str(budget), *cells])
    return table(["budget", *names], rows)


def _show_differences(found: Sequence[Difference]) -> str:
    rows = [
        [d.better, d.than, d.dataset, f"{d.mean:+.4f}", f"{d.low:+.4f}", f"{d.high:+.4f}"]
        for d in found
    ]
    return table(["system", "less", "data set", "mean", "2.5 %", "97.5 %"], rows)


@click.command()
@click.argument("results", type=click.Path(path_type=Path, exists=True))
@click.option("--build", required=True)
@click.option("--control", help="The direct control's build.")
@click.option("--float", "float_build", help="The same weights, not rounded.")
def main(results: Path, build: str, control: str | None, float_build: str | None) -> None:
    """Print what was measured, the curve over budgets, and the claims with 95 % intervals."""
    measured = read(results)
    pairs = claims(measured, build, control, float_build)
    click.echo(_show(measured))
    click.echo("\nnDCG@10, time to vector, tokens of a thought\n" + _show_curve(measured, build))
    click.echo("\n" + _show_differences([d for pair in pairs for d in compare(measured, *pair)]))


if __name__ == "__main__":
    main()
