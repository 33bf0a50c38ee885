"""Retrieval quality of a build: BM25 beside it, one row a budget."""

import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from t1_edge.encoder import Encoder
from t1_edge_bench.datasets import Dataset
from t1_edge_bench.metrics import mean, score
from t1_edge_bench.ranking import Run, bm25, dense
from t1_edge_bench.vectors import document_vectors


class QualityRow(msgspec.Struct, frozen=True, kw_only=True):
    """How well one system found what the judges found.

    Attributes:
        system: "bm25" or "t1-edge".
        dataset: Name of the data set, with its split.
        documents: How many were searched.
        queries: How many were asked.
        ndcg: nDCG@10, mean over the queries.
        recall: recall@100, mean over the queries.
        build: Name of the build; "" for BM25, like all that follows.
        engine: Library that ran it.
        device: Where it ran.
        budget: Most tokens of a thought.
        thought_tokens: Tokens of a thought, mean over the queries.
        truncated_queries: Queries that were cut to the build's limit.
        seconds_a_query: Thinking and embedding, mean over the queries, which ran in batches.
    """

    system: str
    dataset: str
    documents: int
    queries: int
    ndcg: float = msgspec.field(name="ndcg@10")
    recall: float = msgspec.field(name="recall@100")
    build: str = ""
    engine: str = ""
    device: str = ""
    budget: int | None = None
    thought_tokens: float | None = None
    truncated_queries: int | None = None
    seconds_a_query: float | None = None


def quality(
    encoder: Encoder,
    dataset: Dataset,
    budgets: Sequence[int],
    *,
    build: str,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int], None] = lambda documents: None,
) -> list[QualityRow]:
    """Measure BM25, then the build at each budget, on the same queries.

    Args:
        encoder: The build.
        dataset: Documents, queries, judgements.
        budgets: Most tokens of a thought, one row each.
        build: What to call the build.
        say: Called with a line of talk.
        progress: Called with the number of documents just encoded.

    Returns:
        A row for BM25 and one for each budget.
    """
    say(f"{len(dataset.queries)} queries, {dataset.unjudged} without a judgement left out")
    rows = [_row(dataset, bm25(dataset), system="bm25")]
    documents = document_vectors(encoder, dataset, say=say, progress=progress)
    for budget in budgets:
        say(f"asking with a budget of {budget}")
        began = time.monotonic()
        found = encoder.encode_queries([query.text for query in dataset.queries], budget=budget)
        seconds = time.monotonic() - began
        run = dense(dataset, documents, np.stack([query.vector for query in found]))
        about = {
            "system": "t1-edge",
            "build": build,
            "engine": encoder.info.library,
            "device": encoder.info.device,
            "budget": budget,
            "thought_tokens": round(float(np.mean([len(q.thought_tokens) for q in found])), 2),
            "truncated_queries": sum(query.truncated for query in found),
            "seconds_a_query": round(seconds / len(found), 4),
        }
        rows.append(_row(dataset, run, **about))
    return rows


def _row(dataset: Dataset, run: Run, **about: object) -> QualityRow:
    scores = score(run, dataset.qrels)
    measured = {
        "dataset": f"{dataset.name}/{dataset.split}" if dataset.split else dataset.name,
        "documents": len(dataset.documents),
        "queries": len(dataset.queries),
        "ndcg@10": round(mean(scores.ndcg_at_10), 4),
        "recall@100": round(mean(scores.recall_at_100), 4),
    }
    return msgspec.convert(measured | about, QualityRow)
