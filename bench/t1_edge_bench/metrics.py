"""nDCG@10 and recall@100, by ir-measures."""

from collections.abc import Mapping
from dataclasses import dataclass

from t1_edge.errors import MissingExtraError
from t1_edge_bench.datasets import Dataset
from t1_edge_bench.ranking import Run, by_topic


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Measures of a run by query id, each 0 to 1.

    Attributes:
        ndcg_at_10: Normalised discounted cumulative gain of the first ten.
        recall_at_100: Share of what is relevant among the first hundred documents.
    """

    ndcg_at_10: Mapping[str, float]
    recall_at_100: Mapping[str, float]


def score(run: Run, dataset: Dataset) -> Scores:
    """Measure a run. A query for which nothing was found scores 0.

    Args:
        run: Query id to document id to score.
        dataset: The judgements, of documents or of their topics (see `by_topic`).

    Raises:
        MissingExtraError: If ir-measures is not installed.
    """
    try:
        import ir_measures
    except ImportError as e:
        raise MissingExtraError("ir-measures", "bench") from e
    ndcg, recall = ir_measures.nDCG @ 10, ir_measures.R @ 100
    judged = {query: dict(gains) for query, gains in dataset.qrels.items()}
    found: dict[object, dict[str, float]] = {m: dict.fromkeys(judged, 0.0) for m in (ndcg, recall)}
    ranked = {query: dict(hits) for query, hits in by_topic(run, dataset).items() if hits}
    for metric in ir_measures.iter_calc([ndcg, recall], judged, ranked):
        found[metric.measure][metric.query_id] = float(metric.value)
    return Scores(ndcg_at_10=found[ndcg], recall_at_100=found[recall])


def mean(values: Mapping[str, float]) -> float:
    """Mean over the queries."""
    return sum(values.values()) / len(values)
