"""Retrieval quality of a build at several budgets, alone and with BM25; BM25 beside it."""

import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from t1_edge.encoder import Encoder
from t1_edge.thinking import Settle
from t1_edge_bench.datasets import Dataset
from t1_edge_bench.metrics import mean, score
from t1_edge_bench.ranking import Run
from t1_edge_bench.search import DENSE, Searcher


class QualityRow(msgspec.Struct, frozen=True, kw_only=True):
    """How well one system found what the judges found.

    Attributes:
        system: "bm25", or one that `Searcher.runs` knows.
        dataset: Name of the data set, with its split.
        documents: How many were searched.
        queries: How many were asked.
        ndcg: nDCG@10, mean over the queries.
        recall: recall@100, mean over the queries; None where topics are judged, most of which a
            hundred documents reach whatever they are.
        build: As it was asked for; None for BM25, like all that follows.
        library: What ran it.
        read_by: What read the documents, and by which graph.
        device: Where it ran.
        budget: Most tokens of a thought.
        settle: Cosine from which on a vector has come to rest, and its thought ends; None if
            thoughts were not asked to.
        settle_every: Tokens between two looks at the vector; likewise.
        one_by_one: Whether each query came alone; else they ran in batches.
        thought_tokens: Tokens of a thought, mean over the queries.
        truncated_queries: Queries that were cut to the build's limit when it thought about them.
        truncated_documents: Documents likewise.
        seconds_a_query: Thinking and embedding, mean over the queries. A search by BM25 alone needs
            no vector, but its thought; a hybrid one that thinks needs the direct vector besides.
    """

    system: str
    dataset: str
    documents: int
    queries: int
    ndcg: float = msgspec.field(name="ndcg@10")
    recall: float | None = msgspec.field(name="recall@100")
    build: str | None = None
    library: str | None = None
    read_by: str | None = None
    device: str | None = None
    budget: int | None = None
    settle: float | None = None
    settle_every: int | None = None
    one_by_one: bool | None = None
    thought_tokens: float | None = None
    truncated_queries: int | None = None
    truncated_documents: int | None = None
    seconds_a_query: float | None = None


def quality(
    encoder: Encoder,
    dataset: Dataset,
    budgets: Sequence[int],
    *,
    build: str,
    settles: Sequence[Settle] = (),
    one_by_one: bool = False,
    batch_size: int | None = None,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int], None] = lambda documents: None,
) -> list[QualityRow]:
    """Measure BM25, then the build at each budget, on the same queries.

    Where it thinks, it does so without `Encoder.encode_queries`' `settle`, and then with each.

    Args:
        encoder: The build.
        dataset: Documents, queries, judgements.
        budgets: Most tokens of a thought.
        build: What to call the build.
        settles: See `t1_edge.thinking.Settle`.
        one_by_one: Whether queries come alone, as they do from a person, and not in batches.
        batch_size: Most texts that run together; as many as run well if None.
        say: Called with a line of talk.
        progress: Called with the number of documents just encoded.

    Returns:
        A row for BM25, and for each budget, and settling, one of each system that `Searcher.runs`
        knows.
    """
    say(f"{len(dataset.queries)} queries, {dataset.unjudged} without a judgement left out")
    searcher = Searcher(
        encoder=encoder,
        dataset=dataset,
        one_by_one=one_by_one,
        batch_size=batch_size,
        say=say,
        progress=progress,
    )
    rows = [_judged("bm25", dataset, searcher.lexical)]
    reader = encoder.read_by()
    vectors = searcher.documents  # before the clock of the first budget runs
    say(f"{len(vectors)} vectors of {vectors.shape[1]} dimensions")
    direct: Run | None = None
    cut = sum(encoder.codec.document(document.text).truncated for document in dataset.documents)
    for budget, settle in [
        (n, how) for n in budgets for how in ((None, *settles) if n else (None,))
    ]:
        settling = f", settled at {settle.cosine}" if settle else ""
        if budget and direct is None:
            say("asking without a thought, for the hybrid search")
            direct = searcher.direct
        say(f"asking with a budget of {budget}{settling}")
        began = time.monotonic()
        found = searcher.think(budget, settle)
        seconds = time.monotonic() - began
        runs = searcher.runs(found, direct if budget else None)
        if not budget:
            direct = runs[DENSE]
        rows += [
            msgspec.structs.replace(
                _judged(system, dataset, run),
                build=build,
                library=encoder.info.library,
                read_by=f"{reader.library}, {reader.graph}",
                device=encoder.info.device,
                budget=budget,
                settle=settle.cosine if settle else None,
                settle_every=settle.every if settle else None,
                one_by_one=one_by_one,
                thought_tokens=round(float(np.mean([len(q.thought_tokens) for q in found])), 2),
                truncated_queries=sum(query.truncated for query in found),
                truncated_documents=cut,
                seconds_a_query=round(seconds / len(found), 4),
            )
            for system, run in runs.items()
        ]
    return rows


def _judged(system: str, dataset: Dataset, run: Run) -> QualityRow:
    scores = score(run, dataset)
    return QualityRow(
        system=system,
        dataset=f"{dataset.name}/{dataset.split}" if dataset.split else dataset.name,
        documents=len(dataset.documents),
        queries=len(dataset.queries),
        ndcg=round(mean(scores.ndcg_at_10), 4),
        recall=None if dataset.topics else round(mean(scores.recall_at_100), 4),
    )
