"""A retrieval set that every machine with Python has: its language reference, and our questions.

The passages come from `pydoc_data.topics`, the text behind `help("topics")`. The questions were
written for this project, in the words of someone who does not know the term, and are judged by
topic: the topics' names are the same in Python 3.11 to 3.14 (CPython's list of them, in
Doc/tools/extensions, has only grown), while their wording is not.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

import msgspec

from t1_edge_bench.datasets import Dataset, Text
from t1_edge_bench.ranking import Run

_UNDERLINE: Final = re.compile(r"[-*=~^+|]{3,}")
_MAX_WORDS: Final = 60
_PER_TOPIC: Final = 8
_COLLECTIONS: Final = ("compound", "specialnames", "types")
"""Topics that repeat several others whole, section after section."""


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A piece of a topic's text; its id is the topic and a number, as in "function#2"."""

    id: str
    topic: str
    text: str


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question, and the topics whose text answers it."""

    id: str
    text: str
    topics: tuple[str, ...]


@cache
def passages() -> tuple[Passage, ...]:
    """A few hundred passages of at most 60 words, in the order of the topics' names.

    Up to eight of each topic, spread evenly over it: what a long topic explains does not all stand
    at its beginning.
    """
    from pydoc_data.topics import topics

    found: list[Passage] = []
    for topic in sorted(topics.keys() - _COLLECTIONS):
        pieces = _spread(list(_pieces(topics[topic])))
        found += [
            Passage(id=f"{topic}#{at}", topic=topic, text=piece) for at, piece in enumerate(pieces)
        ]
    return tuple(found)


@cache
def questions() -> tuple[Question, ...]:
    """The questions; the first five are the demo's."""
    raw = files("t1_edge_bench").joinpath("data/pydoc_questions.jsonl").read_bytes()
    return tuple(msgspec.json.decode(line, type=Question) for line in raw.splitlines())


def dataset() -> Dataset:
    """Passages and questions as a data set; judgements are of topics, see `by_topic`."""
    return Dataset(
        name="pydoc",
        split="",
        documents=[Text(id=passage.id, text=passage.text) for passage in passages()],
        queries=[Text(id=question.id, text=question.text) for question in questions()],
        qrels={question.id: dict.fromkeys(question.topics, 1) for question in questions()},
        excluded={},
        unjudged=0,
    )


def by_topic(run: Run) -> Run:
    """A run over passages as a run over topics: a topic is as good as its best passage."""
    found: dict[str, Mapping[str, float]] = {}
    for query, hits in run.items():
        best: dict[str, float] = {}
        for passage, score in hits.items():
            topic = passage.partition("#")[0]
            best[topic] = max(score, best.get(topic, score))
        found[query] = best
    return found


def _pieces(text: str) -> Iterator[str]:
    """Paragraphs, gathered up to the limit of words; a longer one is cut at it."""
    gathered: list[str] = []
    for paragraph in text.split("\n\n"):
        words = _UNDERLINE.sub(" ", paragraph).split()
        if len(gathered) + len(words) > _MAX_WORDS and gathered:
            yield " ".join(gathered)
            gathered = []
        gathered += words
        while len(gathered) > _MAX_WORDS:
            yield " ".join(gathered[:_MAX_WORDS])
            gathered = gathered[_MAX_WORDS:]
    if gathered:
        yield " ".join(gathered)


def _spread(pieces: list[str]) -> list[str]:
    if len(pieces) <= _PER_TOPIC:
        return pieces
    step = (len(pieces) - 1) / (_PER_TOPIC - 1)
    return [pieces[round(at * step)] for at in range(_PER_TOPIC)]
