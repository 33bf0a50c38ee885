"""What nano finds, from exported builds and through the bench's own code.

    python -m recipes.nano.evaluate --build nano --bench ../shared/data/bench --out results.json

One line a system and data set, with nDCG@10 of every query; then the claims of docs/nano.md as
paired differences with bootstrap intervals.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import click
import msgspec
import numpy as np
from numpy.typing import NDArray

from recipes.nano.teacher import embed
from t1_edge.encoder import Encoder
from t1_edge.results import QueryEmbedding
from t1_edge_bench import pydoc
from t1_edge_bench.datasets import Dataset, Text, load
from t1_edge_bench.metrics import score
from t1_edge_bench.ranking import Run, bm25, dense, fuse
from t1_edge_bench.table import table
from t1_edge_bench.vectors import document_vectors

SETS: Final = ("entailment-bank", "openstax-psychology", "bright-pony", "bright-theoremqa")
RESAMPLES: Final = 10_000


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A system on a data set.

    Attributes:
        dataset: Its name.
        system: What searched.
        ndcg: nDCG@10 of each query, in the set's order.
        seconds: To a query's vector, mean; None where none is made.
        thought_tokens: Mean length of a thought.
    """

    dataset: str
    system: str
    ndcg: list[float]
    seconds: float | None = None
    thought_tokens: float | None = None

    @property
    def mean(self) -> float:
        """nDCG@10 over the queries."""
        return float(np.mean(self.ndcg))


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


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set, and how a run over its documents becomes one that is judged."""

    dataset: Dataset
    qrels: Mapping[str, Mapping[str, int]]
    judged: Callable[[Run], Run] = lambda run: run

    def measure(self, system: str, run: Run, **about: float) -> Measured:
        """nDCG@10 of a run."""
        found = score(self.judged(run), self.qrels).ndcg_at_10
        values = [round(found[query.id], 5) for query in self.dataset.queries]
        return Measured(dataset=self.dataset.name, system=system, ndcg=values, **about)


def tasks(bench: Path, limit: int | None) -> Iterator[Task]:
    """The bench sets, and the project's own questions."""
    for name in SETS:
        split = "test" if name == "entailment-bank" else None
        found = load(bench / name, split=split, limit_queries=limit)
        yield Task(dataset=found, qrels=found.qrels)
    own = pydoc.dataset()
    yield Task(
        dataset=replace(own, queries=own.queries[:limit]),
        qrels=pydoc.topic_judgements(),
        judged=pydoc.by_topic,
    )


def baselines(task: Task) -> Iterator[Measured]:
    """BM25, and all-MiniLM-L6-v2."""
    data = task.dataset
    yield task.measure("bm25", bm25(data))
    documents = embed([document.text for document in data.documents]).astype(np.float32)
    queries = embed([query.text for query in data.queries]).astype(np.float32)
    yield task.measure("all-MiniLM-L6-v2", dense(data, documents, queries))


def thinking(task: Task, encoder: Encoder, budgets: Sequence[int], name: str) -> Iterator[Measured]:
    """A build at several budgets, and what its longest thoughts do for others."""
    data = task.dataset
    documents = document_vectors(encoder, data, say=_say, progress=lambda count: None)
    texts = [query.text for query in data.queries]
    lexical = bm25(data)
    plain = encoder.encode_queries(texts, budget=0)
    direct = dense(data, documents, _vectors(plain))
    for budget in budgets:
        found = encoder.encode_queries(texts, budget=budget) if budget else plain
        run = dense(data, documents, _vectors(found))
        seconds = _seconds(encoder, texts, budget)
        length = float(np.mean([len(query.thought_tokens) for query in found]))
        about = {"seconds": seconds, "thought_tokens": length}
        yield task.measure(f"{name}, budget {budget}", run, **about)
        yield task.measure(f"{name}, budget {budget}, RRF with bm25", fuse([run, lexical]))
        if budget:
            thoughts = [query.thought for query in found]
            shuffled = [*thoughts[1:], thoughts[0]]
            found = encoder.encode_queries(texts, thoughts=shuffled)
            run = dense(data, documents, _vectors(found))
            yield task.measure(f"{name}, {budget}, shuffled thoughts", run)
            expanded = bm25(_with_thoughts(data, thoughts))
            yield task.measure(f"{name}, {budget}, bm25 over query and thought", expanded)
            run = fuse([direct, expanded])
            yield task.measure(f"{name}, {budget}, RRF of direct and bm25 over both", run)


def _with_thoughts(data: Dataset, thoughts: Sequence[str]) -> Dataset:
    asked = [
        Text(id=query.id, text=f"{query.text} {thought}")
        for query, thought in zip(data.queries, thoughts, strict=True)
    ]
    return replace(data, queries=asked)


def _vectors(found: Sequence[QueryEmbedding]) -> NDArray[np.float32]:
    return np.stack([query.vector for query in found])


def _seconds(encoder: Encoder, texts: Sequence[str], budget: int) -> float:
    """To the vector of one query that is alone: the median of the first twenty."""
    alone = [encoder.encode_query(text, budget=budget).timings.total for text in texts[:20]]
    return float(np.median(alone))


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


def _say(text: str) -> None:
    click.echo(text, err=True)


def _show(measured: Sequence[Measured]) -> str:
    names = list(dict.fromkeys(m.dataset for m in measured))
    cells: dict[str, dict[str, str]] = {}
    for m in measured:
        cells.setdefault(m.system, {})[m.dataset] = f"{m.mean:.3f}"
    rows = [[system, *(found.get(n, "") for n in names)] for system, found in cells.items()]
    return table(["system", *names], rows)


def _show_differences(found: Sequence[Difference]) -> str:
    rows = [
        [d.better, d.than, d.dataset, f"{d.mean:+.4f}", f"{d.low:+.4f}", f"{d.high:+.4f}"]
        for d in found
    ]
    return table(["system", "less", "data set", "mean", "2.5 %", "97.5 %"], rows)


@click.command()
@click.option("--build", "builds", multiple=True, required=True, help="The first is nano.")
@click.option("--bench", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--budget", default="0,16", show_default=True)
@click.option("--engine", default="onnx", show_default=True)
@click.option("--limit-queries", type=int)
def main(
    builds: Sequence[str],
    bench: Path,
    out: Path,
    budget: str,
    engine: str,
    limit_queries: int | None,
) -> None:
    """Measure builds beside BM25 and all-MiniLM-L6-v2; the first is compared with the rest."""
    budgets = [int(part) for part in budget.split(",")]
    measured: list[Measured] = []
    for task in tasks(bench, limit_queries):
        measured += baselines(task)
        for name in builds:
            with Encoder.load(name, engine=engine) as encoder:  # type: ignore[arg-type]
                measured += thinking(task, encoder, budgets, name)
        _say(_show([m for m in measured if m.dataset == task.dataset.name]))
    differences = [d for pair in _claims(builds, budgets) for d in compare(measured, *pair)]
    out.write_bytes(msgspec.json.encode({"measured": measured, "differences": differences}))
    click.echo(_show(measured))
    click.echo("\n" + _show_differences(differences))


def _claims(builds: Sequence[str], budgets: Sequence[int]) -> Iterator[tuple[str, str]]:
    nano = builds[0]
    direct = f"{nano}, budget 0"
    yield direct, "bm25"
    yield direct, "all-MiniLM-L6-v2"
    for budget in budgets:
        own = f"{nano}, budget {budget}"
        for other in builds[1:]:
            yield own, f"{other}, budget {budget}"
        if budget:
            yield own, direct
            yield f"{nano}, {budget}, shuffled thoughts", direct
            yield f"{nano}, {budget}, bm25 over query and thought", "bm25"
            yield from ((own, f"{other}, budget 0") for other in builds[1:])


if __name__ == "__main__":
    main()
