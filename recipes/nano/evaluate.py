"""What nano finds, from exported builds and through the bench's own code.

    python -m recipes.nano.evaluate --build nano --bench ../shared/data/bench --out results.jsonl
    python -m recipes.nano.report results.jsonl --build nano

Appends a line a system and data set, with nDCG@10 of every query. Called again, measures what the
file lacks: long documents take half an hour a build on two cores.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import click
import msgspec
import numpy as np

from recipes.nano.teacher import embed
from t1_edge.encoder import Encoder
from t1_edge_bench import pydoc
from t1_edge_bench.datasets import Dataset, load
from t1_edge_bench.metrics import score
from t1_edge_bench.ranking import Run, bm25, dense, fuse
from t1_edge_bench.search import DENSE, EXPANDED, Searcher

SETS: Final = ("entailment-bank", "openstax-psychology", "bright-pony", "bright-theoremqa")
SHUFFLED: Final = "behind the thought of a query half the set away"
BOTH: Final = f"{DENSE}, {EXPANDED} by RRF"
"""The thought in BM25 and behind the vector."""


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


def read_dataset(name: str, bench: Path, limit_queries: int | None) -> Dataset:
    """A bench set, or the project's own questions.

    Args:
        name: `pydoc.NAME`, or a folder in `bench`, as `SETS` are.
        bench: Folder of the sets.
        limit_queries: Take the first so many questions.

    Raises:
        DataError: If the folder is not what it must be.
    """
    if name == pydoc.NAME:
        return pydoc.dataset(limit_queries=limit_queries)
    split = "test" if name == "entailment-bank" else None
    return load(bench / name, split=split, limit_queries=limit_queries)


def judge(dataset: Dataset, system: str, run: Run, *, build: str = "") -> Measured:
    """nDCG@10 of a run.

    Args:
        dataset: What was searched.
        system: What searched.
        run: What it found.
        build: Fingerprint of the build that made the vectors; "" if none did.

    Raises:
        MissingExtraError: If ir-measures is not installed.
    """
    found = score(run, dataset).ndcg_at_10
    return Measured(
        dataset=dataset.name,
        system=system,
        ndcg=[round(found[query.id], 5) for query in dataset.queries],
        build=build,
    )


def baselines(dataset: Dataset) -> Iterator[Measured]:
    """BM25, and all-MiniLM-L6-v2."""
    yield judge(dataset, "bm25", bm25(dataset))
    documents = embed([document.text for document in dataset.documents]).astype(np.float32)
    queries = embed([query.text for query in dataset.queries]).astype(np.float32)
    yield judge(dataset, "all-MiniLM-L6-v2", dense(dataset, documents, queries))


def measure(searcher: Searcher, name: str, budget: int) -> Iterator[Measured]:
    """A build at one budget: alone, with BM25, and with a thought of its own or of another query.

    Args:
        searcher: The build on a data set.
        name: What lines call the build.
        budget: Most tokens of a thought.
    """
    encoder = searcher.encoder
    found = searcher.think(budget)
    runs = dict(searcher.runs(found, searcher.direct if budget else None))
    if budget:
        texts = [query.text for query in searcher.dataset.queries]
        half = len(found) // 2  # neighbours are often about one subject
        others = [query.thought for query in (*found[half:], *found[:half])]
        runs[SHUFFLED] = searcher.dense(encoder.encode_queries(texts, thoughts=others))
        runs[BOTH] = fuse([runs[DENSE], runs[EXPANDED]])
    for system, run in runs.items():
        named = system_name(name, budget, system)
        line = judge(searcher.dataset, named, run, build=encoder.fingerprint)
        if system == DENSE:
            tokens = float(np.mean([len(query.thought_tokens) for query in found]))
            seconds = _seconds(searcher, budget)
            line = msgspec.structs.replace(line, seconds=seconds, thought_tokens=tokens)
        yield line


def _seconds(searcher: Searcher, budget: int) -> float:
    """To the vector of one query that is alone: the median of the first twenty."""
    alone = [
        searcher.encoder.encode_query(query.text, budget=budget).timings.total
        for query in searcher.dataset.queries[:20]
    ]
    return float(np.median(alone))


def system_name(build: str, budget: int, system: str = DENSE) -> str:
    """What a line calls a system of `Searcher.runs`, or of `measure`, with a build at a budget."""
    return f"{build} at {budget}: {system}"


def read(path: Path) -> list[Measured]:
    """The lines of a results file; of two of one system and data set, the later."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    found = [msgspec.json.decode(line, type=Measured) for line in lines]
    return list({(m.dataset, m.system): m for m in found}.values())


def say(text: str) -> None:
    """Print a line of talk beside what is piped on."""
    click.echo(text, err=True)


def parse_budgets(ctx: click.Context, param: click.Parameter, text: str) -> list[int]:
    """Several budgets of an option, between commas."""
    return [int(part) for part in text.split(",")]


@click.command()
@click.option("--build", "builds", multiple=True, required=True)
@click.option("--bench", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--set", "sets", multiple=True, default=(*SETS, pydoc.NAME), show_default=True)
@click.option("--budget", "budgets", callback=parse_budgets, default="0,16", show_default=True)
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
            say(f"{m.dataset}: {m.mean:.4f} {m.system}")

    for name in sets:
        dataset = read_dataset(name, bench, limit_queries)
        if (dataset.name, "bm25") not in known:
            keep(baselines(dataset))
        for build in builds:
            with Encoder.load(build, engine=engine, cache=False) as encoder:  # type: ignore[arg-type]
                searcher = Searcher(encoder=encoder, dataset=dataset, say=say)
                for budget in budgets:
                    system = (dataset.name, system_name(build, budget))
                    if known.get(system) != encoder.fingerprint:
                        keep(measure(searcher, build, budget))


if __name__ == "__main__":
    main()
