"""What the demo measures of a build: encode, think, search Python's language reference."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from t1_edge.build import Build, Format
from t1_edge.encoder import Encoder
from t1_edge.results import QueryEmbedding
from t1_edge_bench import pydoc
from t1_edge_bench.datasets import Dataset
from t1_edge_bench.metrics import mean, score
from t1_edge_bench.ranking import Run, bm25, by_topic, dense
from t1_edge_bench.table import table

_SHOWN: Final = (0, 2, 18, 25, 85, 88)
"""Questions that are shown: thoughts that say more than the question, and one that is not found."""

_TIMED: Final = 20
_ASKED: Final = 16
"""Budget of the thoughts that are shown, where a build thinks only when it is asked to."""

Say = Callable[[str], None]


class DemoRow(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the demo's table. Times in seconds, sizes in bytes.

    Attributes:
        format: "onnx", "gguf", or "bm25", which has an nDCG alone.
        ndcg: nDCG@10 over topics, mean over the questions.
        library: What ran; None for BM25, like all that follows.
        size: Graph and weights.
        load: From the call to a ready encoder, the golden check of a first load included.
        tokens_per_second: Reading the passages.
        query_p50: From the call to the vector of one question, its thought included.
    """

    format: str
    ndcg: float = msgspec.field(name="ndcg@10")
    library: str | None = None
    size: int | None = None
    load: float | None = None
    tokens_per_second: float | None = None
    query_p50: float | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A question, what the build thinks of it, and the topics that were found first.

    Topics are found within the build's own budget: behind the thought where that is not 0.

    Attributes:
        question: Its text.
        thought: What the build writes.
        topics: The best three.
        right: Of them, those that answer the question.
    """

    question: str
    thought: str
    topics: Sequence[str]
    right: Sequence[str]


def measure(
    build: Build, format: Format, say: Say, progress: Callable[[int], None]
) -> tuple[DemoRow, list[Answer]]:
    """Encode the passages and the questions on one engine.

    Args:
        build: The build.
        format: Which of its engines.
        say: Called with a line of talk.
        progress: Called with the number of passages just encoded.

    Returns:
        The engine's row of the table, and some questions with their thoughts.
    """
    data = pydoc.dataset()
    began = time.perf_counter()
    with Encoder.load(build.path, engine=format, cache=False) as encoder:
        load = time.perf_counter() - began
        say(f"{format}: encoding {len(data.documents)} passages with {encoder.info.library}")
        texts = [document.text for document in data.documents]
        documents = encoder.embed_documents(texts, truncate=True, progress=progress)
        say(f"{format}: thinking about {len(data.queries)} questions")
        found = encoder.encode_queries([query.text for query in data.queries])
        alone = [_seconds(encoder, query.text) for query in data.queries[:_TIMED]]
        shown = [found[at] for at in _SHOWN]
        if not encoder.codec.contract.budget:
            asked = [data.queries[at].text for at in _SHOWN]
            shown = encoder.encode_queries(asked, budget=_ASKED)
        library = encoder.info.library
    queries = np.stack([query.vector for query in found])
    run = dense(data, documents.vectors, queries)
    row = DemoRow(
        format=format,
        ndcg=_ndcg(run, data),
        library=library,
        size=build.size(format),
        load=load,
        tokens_per_second=float(documents.tokens.sum() / documents.seconds),
        query_p50=statistics.median(alone),
    )
    return row, _answers(shown, by_topic(run, data), data)


def _seconds(encoder: Encoder, question: str) -> float:
    began = time.perf_counter()
    encoder.encode_query(question)
    return time.perf_counter() - began


def baseline() -> DemoRow:
    """BM25 on the same passages and questions."""
    data = pydoc.dataset()
    return DemoRow(format="bm25", ndcg=_ndcg(bm25(data), data))


def show(rows: Sequence[DemoRow]) -> str:
    """The demo's table."""
    header = ["format", "size, MB", "load, s", "tokens/s", "query p50, ms", "nDCG@10"]
    return table(header, [_cells(row) for row in rows])


def _cells(row: DemoRow) -> list[str]:
    figures = [
        (row.size, 1e-6, ".0f"),
        (row.load, 1.0, ".2f"),
        (row.tokens_per_second, 1.0, ".0f"),
        (row.query_p50, 1e3, ".0f"),
        (row.ndcg, 1.0, ".3f"),
    ]
    shown = ["" if value is None else format(value * unit, spec) for value, unit, spec in figures]
    return [row.format, *shown]


def _ndcg(run: Run, data: Dataset) -> float:
    return mean(score(run, data).ndcg_at_10)


def _answers(found: Sequence[QueryEmbedding], run: Run, data: Dataset) -> list[Answer]:
    answers = []
    for at, query in zip(_SHOWN, found, strict=True):
        question = data.queries[at]
        scores = run[question.id]
        topics = sorted(scores, key=scores.__getitem__, reverse=True)[:3]
        right = [topic for topic in topics if topic in data.qrels[question.id]]
        answers.append(
            Answer(question=question.text, thought=query.thought, topics=topics, right=right)
        )
    return answers
