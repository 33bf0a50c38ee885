"""Whether the engines find the same with one build: nDCG@10 of each, and the paired difference.

    python -m recipes.nano.engines --build nano --bench ../shared/data/bench

Both read documents by the graph for everything, so that neither has anything of the other's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
import msgspec

from recipes.nano.evaluate import Measured, judge, parse_budgets, read_dataset, say
from recipes.nano.report import compare
from t1_edge.build import Format
from t1_edge.encoder import Encoder
from t1_edge_bench import pydoc
from t1_edge_bench.datasets import Dataset
from t1_edge_bench.search import Searcher
from t1_edge_bench.table import table

_SETS: Final = (pydoc.NAME, "entailment-bank")


def measure(build: str, engine: Format, dataset: Dataset, budgets: Sequence[int]) -> list[Measured]:
    """What an engine finds on a data set, a line a budget.

    Args:
        build: Its name or path.
        engine: What runs it.
        dataset: What is searched.
        budgets: Most tokens of a thought.
    """
    with Encoder.load(build, engine=engine, documents="everything", cache=False) as encoder:
        searcher = Searcher(encoder=encoder, dataset=dataset, say=say)
        return [
            judge(
                dataset,
                f"{encoder.info.engine} at {budget}",
                searcher.dense(searcher.think(budget)),
                build=encoder.fingerprint,
            )
            for budget in budgets
        ]


@click.command()
@click.option("--build", default="nano", show_default=True)
@click.option("--bench", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--set", "sets", multiple=True, default=_SETS, show_default=True)
@click.option("--budget", "budgets", callback=parse_budgets, default="0,16", show_default=True)
@click.option("--limit-queries", type=int)
def main(
    build: str,
    bench: Path,
    sets: Sequence[str],
    budgets: Sequence[int],
    limit_queries: int | None,
) -> None:
    """Compare what ONNX Runtime and llama.cpp find; a JSON line a difference, and a table."""
    cells = []
    for name in sets:
        dataset = read_dataset(name, bench, limit_queries)
        onnx, gguf = (measure(build, engine, dataset, budgets) for engine in ("onnx", "gguf"))
        for budget, one, other in zip(budgets, onnx, gguf, strict=True):
            [apart] = compare([one, other], other.system, one.system)
            click.echo(msgspec.json.encode(apart))
            less = f"{apart.mean:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}]"
            means = (f"{found.mean:.3f}" for found in (one, other))
            cells.append([dataset.name, str(budget), *means, less])
    click.echo(table(["set", "budget", "onnx", "gguf", "gguf less onnx"], cells))


if __name__ == "__main__":
    main()
