"""A retrieval set that every machine with Python has: its language reference, and our questions.

The passages come from `pydoc_data.topics`, the text behind `help("topics")`. The questions were
written for this project, in the words of someone who does not know the term, and are judged by
topic: the topics' names are the same in Python 3.11, 3.12 and 3.13, while their wording is not.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import cycle, islice
from typing import Final

import msgspec

from t1_edge_bench.datasets import Dataset, Text

NAME: Final = "pydoc"
"""What the data set is called, in a row of the bench and by recipes.nano."""

_RULE: Final = re.compile(r"[-*=~^]{3,}")
"""What underlines a title."""

_BORDER: Final = re.compile(r"[-=+|\s]+")
"""A line between two rows of a table."""

_SENTENCE: Final = re.compile(r'(?<=[.:;])\s+(?=[A-Z"“(*])')

_SIGNATURE: Final = re.compile(r"(class |classmethod |static )?[\w.]+[(\[].*[)\]]")
"""The head of an entry, as in "str.split(sep=None)": it belongs to what follows."""

_SET_ASIDE: Final = re.compile(
    r"(New|Added|Changed|Deprecated|Removed) (in|since) version|Deprecated since|See also:"
    r"|Raises an auditing event|\*\*PEP |\*\*Source code|-\[|>>>|(Note|Notes|Warning):$"
)
"""Paragraphs that explain nothing: history, references, interpreter sessions."""

_COLLECTIONS: Final = ("compound", "specialnames", "types")
"""Topics that repeat several others whole, section after section."""


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A piece of a topic's text; its id is the topic and a number, as in "function#2"."""

    id: str
    topic: str
    text: str


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question, and the topics whose text answers it.

    Attributes:
        id: "q001" and so on.
        text: The question, which avoids the reference's own terms.
        topics: All the topics that answer it.
        answers: A few words of the reference for each place that answers it, so that what is
            searched holds that place. Never shown to a model.
    """

    id: str
    text: str
    topics: tuple[str, ...]
    answers: tuple[str, ...]


@cache
def passages(*, max_words: int = 60, per_topic: int = 5) -> tuple[Passage, ...]:
    """A few hundred passages, in the order of the topics' names.

    Of each topic come the passages that answer a question, and others spread evenly over it until
    there are `per_topic`: what a long topic explains does not all stand at its beginning.

    Args:
        max_words: The most words of a passage, the title of its section included.
        per_topic: How many passages of a topic, if it has as many; more only if more answer.

    Returns:
        The passages; the same ones whenever Python's version is the same.
    """
    from pydoc_data.topics import topics

    found: list[Passage] = []
    for topic in sorted(topics.keys() - set(_COLLECTIONS)):
        kept = _selected(list(_pieces(topics[topic], max_words)), _answers(topic), per_topic)
        found += [Passage(id=f"{topic}#{at}", topic=topic, text=text) for at, text in kept]
    return tuple(found)


@cache
def questions() -> tuple[Question, ...]:
    """The questions, in an order that stays."""
    raw = files("t1_edge_bench").joinpath("data/pydoc_questions.jsonl").read_bytes()
    return tuple(msgspec.json.decode(line, type=Question) for line in raw.splitlines())


def dataset(*, limit_queries: int | None = None) -> Dataset:
    """Passages and questions as a data set, in which topics are judged; its split is the Python.

    Args:
        limit_queries: Keep the first so many questions.
    """
    asked = questions()[:limit_queries]
    return Dataset(
        name=NAME,
        split=f"python{sys.version_info.major}.{sys.version_info.minor}",
        documents=[Text(id=passage.id, text=passage.text) for passage in passages()],
        queries=[Text(id=question.id, text=question.text) for question in asked],
        qrels={question.id: dict.fromkeys(question.topics, 1) for question in asked},
        excluded={},
        unjudged=0,
        topics={passage.id: passage.topic for passage in passages()},
    )


def texts(count: int, words: int) -> list[str]:
    """Running text of so many words each, which goes on from one to the next, and from the start.

    Args:
        count: How many texts.
        words: Of each.
    """
    running = cycle(" ".join(passage.text for passage in passages()).split())
    return [" ".join(islice(running, words)) for _ in range(count)]


def _answers(topic: str) -> list[str]:
    asked = (question for question in questions() if topic in question.topics)
    return [answer for question in asked for answer in question.answers]


def _selected(pieces: list[str], answers: list[str], wanted: int) -> list[tuple[int, str]]:
    """The pieces that hold an answer, and others spread evenly, with their places in the topic."""
    firsts = (next((at for at, text in enumerate(pieces) if a in text), None) for a in answers)
    kept = {at for at in firsts if at is not None}
    others = [at for at in range(len(pieces)) if at not in kept]
    kept.update(_spread(others, wanted - len(kept)))
    return [(at, pieces[at]) for at in sorted(kept)]


def _spread(places: list[int], wanted: int) -> list[int]:
    if len(places) <= wanted:
        return places
    return [places[at * len(places) // wanted] for at in range(max(wanted, 0))]


def _pieces(text: str, max_words: int) -> Iterator[str]:
    """Neighbouring paragraphs of one section up to the limit, each piece under the title."""
    section = ""
    gathered: list[str] = []
    for title, paragraph in _paragraphs(text):
        room = max_words - len(title.split())
        for words in _portions(paragraph, room):
            if gathered and (title != section or len(gathered) + len(words) > room):
                yield f"{section}: {' '.join(gathered)}"
                gathered = []
            section = title
            gathered += words
    if gathered:
        yield f"{section}: {' '.join(gathered)}"


def _paragraphs(text: str) -> Iterator[tuple[str, str]]:
    """Paragraphs, each with the title of its section; no grammar, sessions, or references."""
    title = head = ""
    for block in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        if len(lines) > 1 and _RULE.fullmatch(lines[1]):
            title, lines = lines[0], lines[2:]
        paragraph = " ".join(word for line in lines for word in _words(line))
        if not paragraph or "::=" in paragraph or _SET_ASIDE.match(paragraph):
            continue
        if _SIGNATURE.fullmatch(paragraph):
            head += paragraph + " "
            continue
        yield title, head + paragraph
        head = ""
    if head:
        yield title, head


def _words(line: str) -> list[str]:
    """The words of a line, without what draws a table around them."""
    if _RULE.fullmatch(line):
        return []
    if line[0] in "+|" and line[-1] in "+|":
        line = "" if _BORDER.fullmatch(line) else line.strip("|").replace(" | ", " ")
    return line.split()


def _portions(paragraph: str, room: int) -> list[list[str]]:
    """A paragraph if it fits, else its sentences, else words."""
    if len(paragraph.split()) <= room:
        return [paragraph.split()]
    sentences = [sentence.split() for sentence in _SENTENCE.split(paragraph)]
    return [words[at : at + room] for words in sentences for at in range(0, len(words), room)]
