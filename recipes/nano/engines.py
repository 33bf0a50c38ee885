"""Whether the engines find the same with one build: nDCG@10 of each, and the paired difference.

    python -m recipes.nano.engines --build nano --bench ../shared/data/bench

Both read documents by the graph for everything, so that neither has anything of the other's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
import msgspec

from recipes.nano.evaluate import PYDOC, Measured, Task, task
from recipes.nano.report import compare
from t1_edge.build import Build, Format
from t1_edge.cache import find_build
from t1_edge.encoder import Encoder
from t1_edge_bench.search import Searcher
from t1_edge_bench.table import table

_SETS: Final = (PYDOC, "entailment-bank", "openstax-psychology")


def measure(build: Build, format: Format, on: Task, budgets: Sequence[int]) -> list[Measured]:
    """What one format finds on a data set, a line a budget."""
    with Encoder.load(
        build.path, engine=format, documents="everything", budget=max(budgets), cache=False
    ) as encoder:
        searcher = Searcher(encoder=encoder, dataset=on.dataset)
        return [
            on.measure(_system(format, budget), searcher.dense(searcher.think(budget)))
            for budget in budgets
        ]


def _system(format: Format, budget: int) -> str:
    return f"{format} at {budget}"


@click.command()
@click.option("--build", default="nano", show_default=True)
@click.option("--bench", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--set", "sets", multiple=True, default=_SETS, show_default=True)
@click.option("--budget", "budgets", type=int, multiple=True, default=(0, 16), show_default=True)
@click.option("--limit-queries", type=int)
def main(
    build: str,
    bench: Path,
    sets: Sequence[str],
    budgets: Sequence[int],
    limit_queries: int | None,
) -> None:
    """Compare what ONNX Runtime and llama.cpp find; a JSON line a difference, and a table."""
    opened = Build(find_build(build))
    cells = []
    for name in sets:
        on = task(name, bench, limit_queries)
        found = [one for format in ("onnx", "gguf") for one in measure(opened, format, on, budgets)]
        means = {one.system: one.mean for one in found}
        for budget in budgets:
            onnx, gguf = _system("onnx", budget), _system("gguf", budget)
            [apart] = compare(found, gguf, onnx)
            click.echo(msgspec.json.encode(apart))
            less = f"{apart.mean:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}]"
            cells.append(
                [on.dataset.name, str(budget), f"{means[onnx]:.3f}", f"{means[gguf]:.3f}", less]
            )
    click.echo(table(["set", "budget", "onnx", "gguf", "gguf less onnx"], cells))


if __name__ == "__main__":
    main()
