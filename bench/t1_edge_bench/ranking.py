"""From queries to ranked documents: BM25, and exact search over vectors."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from t1_edge.errors import MissingExtraError
from t1_edge_bench.datasets import Dataset

Run = Mapping[str, Mapping[str, float]]
"""Query id to document id to score, the documents that were found; of `by_topic`, to topic."""

DEPTH: Final = 100
"""Documents that are ranked for a query; recall@100 needs no more."""


def bm25(dataset: Dataset, *, depth: int = DEPTH) -> Run:
    """Rank by BM25 (bm25s with its defaults, English stop words, the Snowball stemmer).

    Args:
        dataset: Documents and queries.
        depth: Documents to rank for a query.

    Raises:
        MissingExtraError: If bm25s or PyStemmer is not installed.
    """
    try:
        import bm25s
    except ImportError as e:
        raise MissingExtraError("bm25s", "bench") from e
    try:
        import Stemmer
    except ImportError as e:
        raise MissingExtraError("PyStemmer", "bench") from e
    stemmer = Stemmer.Stemmer("english")

    def cut(texts: list[str]) -> list[list[str]]:
        words: list[list[str]] = bm25s.tokenize(
            texts, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
        )
        return words

    index = bm25s.BM25()
    index.index(cut([document.text for document in dataset.documents]), show_progress=False)
    queries = cut([query.text for query in dataset.queries])
    scores = np.stack([_scores(index.get_scores, words, dataset) for words in queries])
    return _best(dataset, scores, depth)


def dense(
    dataset: Dataset,
    documents: NDArray[np.float32],
    queries: NDArray[np.float32],
    *,
    depth: int = DEPTH,
) -> Run:
    """Rank by inner product, exactly.

    Args:
        dataset: What the vectors are of.
        documents: float32 [documents, d], unit vectors.
        queries: float32 [queries, d], unit vectors.
        depth: Documents to rank for a query.

    Raises:
        MissingExtraError: If usearch is not installed.
    """
    try:
        from usearch.index import MetricKind, search
    except ImportError as e:
        raise MissingExtraError("usearch", "bench") from e
    # What a query leaves out must not take a place from what it may find.
    spare = max((len(ids) for ids in dataset.excluded.values()), default=0)
    count = min(depth + spare, len(documents))
    found = search(documents, queries, count, MetricKind.IP, exact=True)
    names = [document.id for document in dataset.documents]
    keys = found.keys.reshape(len(queries), count)
    distances = found.distances.reshape(len(queries), count)
    run: dict[str, Mapping[str, float]] = {}
    for query, row, apart in zip(dataset.queries, keys, distances, strict=True):
        left_out = dataset.excluded.get(query.id, frozenset())
        pairs = zip(row.tolist(), apart.tolist(), strict=True)
        hits = [(names[key], 1 - distance) for key, distance in pairs]
        run[query.id] = dict([hit for hit in hits if hit[0] not in left_out][:depth])
    return run


def fuse(runs: Sequence[Run], *, depth: int = DEPTH, k: int = 60) -> Run:
    """Reciprocal rank fusion (Cormack, Clarke, Büttcher; SIGIR 2009).

    Args:
        runs: Over the same queries.
        depth: Documents to keep for a query.
        k: Rank that is added to every rank; 60 is the paper's.
    """
    fused: dict[str, Mapping[str, float]] = {}
    for query in runs[0]:
        total: dict[str, float] = {}
        for run in runs:
            ranked = sorted(run[query], key=run[query].__getitem__, reverse=True)
            for rank, document in enumerate(ranked, 1):
                total[document] = total.get(document, 0.0) + 1 / (k + rank)
        best = sorted(total, key=total.__getitem__, reverse=True)[:depth]
        fused[query] = {document: total[document] for document in best}
    return fused


def by_topic(run: Run, dataset: Dataset) -> Run:
    """A run over documents as one over what is judged: a topic is as good as its best document.

    Args:
        run: Over the data set's documents.
        dataset: Knows their topics.

    Returns:
        Query id to topic to score; the run itself where documents are judged.
    """
    if not dataset.topics:
        return run
    found: dict[str, Mapping[str, float]] = {}
    for query, hits in run.items():
        best: dict[str, float] = {}
        for document, score in hits.items():
            topic = dataset.topics[document]
            best[topic] = max(score, best.get(topic, score))
        found[query] = best
    return found


def _scores(score: object, words: list[str], dataset: Dataset) -> NDArray[np.float32]:
    """BM25 of every document; a query of which no word is left scores 0 everywhere."""
    if not words:
        return np.zeros(len(dataset.documents), np.float32)
    assert callable(score)
    return np.asarray(score(words), np.float32)


def _best(dataset: Dataset, scores: NDArray[np.float32], depth: int) -> Run:
    """The best documents of each query; of equal ones the first, and none that scores 0."""
    column = {document.id: at for at, document in enumerate(dataset.documents)}
    names = list(column)
    run: dict[str, Mapping[str, float]] = {}
    for query, row in zip(dataset.queries, scores, strict=True):
        left_out = [column[i] for i in dataset.excluded.get(query.id, ()) if i in column]
        row[left_out] = 0
        order = np.argsort(-row, kind="stable")[:depth]
        run[query.id] = {names[at]: float(row[at]) for at in order.tolist() if row[at] > 0}
    return run
