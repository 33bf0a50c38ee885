"""What nano finds, from exported builds and through the bench's own code.

    python -m recipes.nano.evaluate --build nano --bench ../shared/data/bench --out results.jsonl
    python -m recipes.nano.report results.jsonl --build nano

Appends a line a system and data set, with nDCG@10 of every query. Called again, measures what the
file lacks: long documents take half an hour a build on two cores.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
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
from t1_edge_bench.vectors import document_vectors

SETS: Final = ("entailment-bank", "openstax-psychology", "bright-pony", "bright-theoremqa")
PYDOC: Final = "pydoc"


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A system on a data set.

    Attributes:
        dataset: Its name.
        system: What searched.
        ndcg: nDCG@10 of each query, in the set's order.
        build: Fingerprint of the build that made the vectors; "" if none did.
        seconds: To a query's vector, median; None where none is made.
        thought_tokens: Mean length of a thought.
    """

    dataset: str
    system: str
    ndcg: list[float]
    build: str = ""
    seconds: float | None = None
    thought_tokens: float | None = None

    @property
    def mean(self) -> float:
        """nDCG@10 over the queries."""
        return float(np.mean(self.ndcg))


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set, and how a run over its documents becomes one that is judged."""

    dataset: Dataset
    qrels: Mapping[str, Mapping[str, int]]
    judged: Callable[[Run], Run] = lambda run: run

    def measure(self, system: str, run: Run, *, build: str = "") -> Measured:
        """nDCG@10 of a run."""
        found = score(self.judged(run), self.qrels).ndcg_at_10
        return Measured(
            dataset=self.dataset.name,
            system=system,
            ndcg=[round(found[query.id], 5) for query in self.dataset.queries],
            build=build,
        )


def task(name: str, bench: Path, limit: int | None) -> Task:
    """A bench set, or the project's own questions.

    Args:
        name: One of `SETS`, or `PYDOC`.
        bench: Folder of the sets.
        limit: Take the first so many questions.
    """
    if name == PYDOC:
        own = pydoc.dataset()
        return Task(
            dataset=replace(own, queries=own.queries[:limit]),
            qrels=pydoc.topic_judgements(),
            judged=pydoc.by_topic,
        )
    split = "test" if name == "entailment-bank" else None
    found = load(bench / name, split=split, limit_queries=limit)
    return Task(dataset=found, qrels=found.qrels)


def baselines(task: Task) -> Iterator[Measured]:
    """BM25, and all-MiniLM-L6-v2."""
    data = task.dataset
    yield task.measure("bm25", bm25(data))
    documents = embed([document.text for document in data.documents]).astype(np.float32)
    queries = embed([query.text for query in data.queries]).astype(np.float32)
    yield task.measure("all-MiniLM-L6-v2", dense(data, documents, queries))


@dataclass(frozen=True, kw_only=True)
class Thinking:
    """A build on a data set.

    Attributes:
        task: The data set.
        encoder: The build, loaded.
        name: What lines call it.
    """

    task: Task
    encoder: Encoder
    name: str

    def at(self, budget: int) -> Iterator[Measured]:
        """At one budget: alone, with BM25, and what its thoughts do for BM25."""
        plain = self._plain
        found = self.encoder.encode_queries(self._texts, budget=budget) if budget else plain
        run = self._search(found)
        yield msgspec.structs.replace(
            self._line(f"budget {budget}", run),
            seconds=self._seconds(budget),
            thought_tokens=float(np.mean([len(query.thought_tokens) for query in found])),
        )
        yield self._line(f"{budget}, RRF with bm25", fuse([run, self._lexical]))
        if not budget:
            return
        thoughts = [query.thought for query in found]
        others = [*thoughts[1:], thoughts[0]]
        shuffled = self._search(self.encoder.encode_queries(self._texts, thoughts=others))
        yield self._line(f"{budget}, shuffled thoughts", shuffled)
        expanded = bm25(_with_thoughts(self.task.dataset, thoughts))
        yield self._line(f"{budget}, bm25 over query and thought", expanded)
        both = fuse([self._search(plain), expanded])
        yield self._line(f"{budget}, RRF of direct and bm25 over both", both)

    def _line(self, system: str, run: Run) -> Measured:
        build = self.encoder.fingerprint
        return self.task.measure(f"{self.name}, {system}", run, build=build)

    @cached_property
    def _texts(self) -> list[str]:
        return [query.text for query in self.task.dataset.queries]

    @cached_property
    def _documents(self) -> NDArray[np.float32]:
        data = self.task.dataset
        return document_vectors(self.encoder, data, say=_say, progress=lambda count: None)

    @cached_property
    def _plain(self) -> Sequence[QueryEmbedding]:
        return self.encoder.encode_queries(self._texts, budget=0)

    @cached_property
    def _lexical(self) -> Run:
        return bm25(self.task.dataset)

    def _search(self, queries: Sequence[QueryEmbedding]) -> Run:
        vectors = np.stack([query.vector for query in queries])
        return dense(self.task.dataset, self._documents, vectors)

    def _seconds(self, budget: int) -> float:
        """To the vector of one query that is alone: the median of the first twenty."""
        alone = [
            self.encoder.encode_query(text, budget=budget).timings.total
            for text in self._texts[:20]
        ]
        return float(np.median(alone))


def direct_name(build: str, budget: int) -> str:
    """What a line calls the vectors of a build at a budget, searched alone."""
    return f"{build}, budget {budget}"


def _with_thoughts(data: Dataset, thoughts: Sequence[str]) -> Dataset:
    asked = [
        Text(id=query.id, text=f"{query.text} {thought}")
        for query, thought in zip(data.queries, thoughts, strict=True)
    ]
    return replace(data, queries=asked)


def read(path: Path) -> list[Measured]:
    """The lines of a results file; of two of one system and data set, the later."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    found = [msgspec.json.decode(line, type=Measured) for line in lines]
    return list({(m.dataset, m.system): m for m in found}.values())


def _say(text: str) -> None:
    click.echo(text, err=True)


def _budgets(ctx: click.Context, param: click.Parameter, text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


@click.command()
@click.option("--build", "builds", multiple=True, required=True)
@click.option("--bench", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--set", "sets", multiple=True, default=(*SETS, PYDOC), show_default=True)
@click.option("--budget", "budgets", callback=_budgets, default="0,16", show_default=True)
@click.option("--engine", default="onnx", show_default=True)
@click.option("--limit-queries", type=int)
def main(
    builds: Sequence[str],
    bench: Path,
    out: Path,
    sets: Sequence[str],
    budgets: Sequence[int],
    engine: str,
    limit_queries: int | None,
) -> None:
    """Measure builds beside BM25 and all-MiniLM-L6-v2."""
    known = {(m.dataset, m.system): m.build for m in read(out)}

    def keep(found: Iterator[Measured]) -> None:
        lines = [(m, msgspec.json.encode(m)) for m in found]
        with out.open("ab") as file:
            file.writelines(line + b"\n" for _, line in lines)
        for m, _ in lines:
            _say(f"{m.dataset}: {m.mean:.4f} {m.system}")

    for name in sets:
        on = task(name, bench, limit_queries)
        if (on.dataset.name, "bm25") not in known:
            keep(baselines(on))
        for build in builds:
            with Encoder.load(build, engine=engine) as encoder:  # type: ignore[arg-type]
                thinking = Thinking(task=on, encoder=encoder, name=build)
                for budget in budgets:
                    system = (on.dataset.name, direct_name(build, budget))
                    if known.get(system) != encoder.fingerprint:
                        keep(thinking.at(budget))


if __name__ == "__main__":
    main()
