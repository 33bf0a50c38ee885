"""A build that searches a data set: alone, and with BM25, over the query and over its thought."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from t1_edge.encoder import Encoder
from t1_edge.results import QueryEmbedding
from t1_edge.thinking import Settle
from t1_edge_bench.datasets import Dataset, Text
from t1_edge_bench.ranking import Run, bm25, dense, fuse
from t1_edge_bench.vectors import document_vectors

DENSE: Final = "t1-edge"
HYBRID: Final = f"{DENSE}, bm25 by RRF"

_QUERY_WEIGHT: Final = 5
"""How often BM25 reads the query for each time that it reads the thought."""

_QUERIES: Final = 8
"""Queries that think together, at most."""

EXPANDED: Final = f"bm25 over query x{_QUERY_WEIGHT} and thought"
THINKING_HYBRID: Final = f"direct, {EXPANDED} by RRF"


@dataclass(frozen=True, kw_only=True)
class Searcher:
    """A build on a data set.

    Attributes:
        encoder: The build, loaded.
        dataset: What is searched.
        one_by_one: Whether queries come alone, and not in batches.
        batch_size: Most texts that run together; as many as run well if None.
        say: Called with a line of talk.
        progress: Called with the number of documents just encoded.
    """

    encoder: Encoder
    dataset: Dataset
    one_by_one: bool = False
    batch_size: int | None = None
    say: Callable[[str], None] = lambda text: None
    progress: Callable[[int], None] = lambda documents: None

    @cached_property
    def documents(self) -> NDArray[np.float32]:
        """Vectors of the documents, float32 [n, d]."""
        return document_vectors(
            self.encoder,
            self.dataset,
            batch_size=self.batch_size,
            say=self.say,
            progress=self.progress,
        )

    @cached_property
    def lexical(self) -> Run:
        """BM25 over the queries as they are."""
        return bm25(self.dataset)

    @cached_property
    def direct(self) -> Run:
        """What vectors of the queries without a thought find."""
        return self.dense(self.think(0))

    def think(self, budget: int, settle: Settle | None = None) -> Sequence[QueryEmbedding]:
        """Every query's thought and vector."""
        texts = [query.text for query in self.dataset.queries]
        size = 1 if self.one_by_one else min(self.batch_size or _QUERIES, _QUERIES)
        return self.encoder.encode_queries(texts, budget=budget, settle=settle, batch_size=size)

    def dense(self, found: Sequence[QueryEmbedding]) -> Run:
        """What vectors of the queries find."""
        return dense(self.dataset, self.documents, np.stack([query.vector for query in found]))

    def runs(self, found: Sequence[QueryEmbedding], direct: Run | None = None) -> Mapping[str, Run]:
        """What the queries find, by the name of the system.

        Args:
            found: Of `think`.
            direct: What vectors of the queries without a thought find, where these were given a
                budget.

        Returns:
            Without `direct`, `DENSE`, and `HYBRID` with BM25 over the queries. With it, `DENSE`,
            `EXPANDED`, in which BM25 reads the query five times and its thought once (a thought has
            about as many words as a query, and they are worth less; five is what arXiv 2303.07678
            found for passages), and `THINKING_HYBRID`: of a thought BM25 gains more than the vector
            (docs/nano.md), so that it fuses `direct` with BM25 over query and thought.
        """
        own = self.dense(found)
        if direct is None:
            return {DENSE: own, HYBRID: fuse([own, self.lexical])}
        expanded = bm25(self._expanded([query.thought for query in found]))
        return {DENSE: own, EXPANDED: expanded, THINKING_HYBRID: fuse([direct, expanded])}

    def _expanded(self, thoughts: Sequence[str]) -> Dataset:
        asked = [
            Text(id=query.id, text=" ".join([query.text] * _QUERY_WEIGHT + [thought]))
            for query, thought in zip(self.dataset.queries, thoughts, strict=True)
        ]
        return replace(self.dataset, queries=asked)
