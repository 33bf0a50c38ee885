"""What `peers.speed` has embedded: texts that every machine with Python has, or given ones.

Passages are running text of Python's language reference, cut to 90 to 210 words, 150 on average.
Facts are sentences of the same, and of the standard library's docstrings. Both are the same
whenever Python's version is. Queries are the bench's own questions.
"""

import ast
import os
import re
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Final

import click
import msgspec

from peers.speed_wire import Tasks, Texts
from t1_edge.contract import Codec
from t1_edge_bench.pydoc import passages as reference_passages
from t1_edge_bench.pydoc import questions

_WORDS: Final = (90, 180, 120, 210, 150)
"""Of one passage after another."""

_SENTENCE: Final = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_FACT_WORDS: Final = range(5, 31)

_DOCUMENTED: Final = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class _Line(msgspec.Struct):
    """A line of a file of texts; other fields are let be."""

    text: str


def passages(count: int) -> list[str]:
    """So many passages; if the reference is too short for them, it begins again, cut elsewhere."""
    words = cycle(" ".join(passage.text for passage in reference_passages()).split())
    lengths = islice(cycle(_WORDS), count)
    return [" ".join(islice(words, length)) for length in lengths]


def facts(count: int) -> list[str]:
    """So many sentences, no two alike.

    Raises:
        click.ClickException: If this Python has fewer.
    """
    found = list(islice(dict.fromkeys(_sentences()), count))
    if len(found) < count:
        raise click.ClickException(f"this Python's texts have {len(found)} facts, not {count}")
    return found


def queries(count: int) -> list[str]:
    """So many questions.

    Raises:
        click.ClickException: If there are fewer.
    """
    found = [question.text for question in questions()[:count]]
    if len(found) < count:
        raise click.ClickException(f"there are {len(found)} questions, not {count}")
    return found


def read(path: Path, count: int) -> list[str]:
    """The first texts of a file of JSON lines with a field "text".

    Raises:
        click.ClickException: If there are fewer than `count`, or a line is none.
    """
    try:
        with path.open("rb") as lines:
            found = [msgspec.json.decode(one, type=_Line).text for one in islice(lines, count)]
    except msgspec.MsgspecError as e:
        raise click.ClickException(f'{path} must hold lines like {{"text": "..."}}: {e}') from e
    if len(found) < count:
        raise click.ClickException(f"{path} has {len(found)} texts, not {count}")
    return found


def tasks(
    codec: Codec, budget: int, *, passages: list[str], facts: list[str], queries: list[str]
) -> Tasks:
    """Texts and their rows.

    Args:
        codec: Makes the rows.
        budget: Tokens of a thought.
        passages: Documents of many sentences.
        facts: Documents of one sentence.
        queries: What is thought about.
    """
    asked = [codec.query(text).tokens for text in queries]
    return Tasks(
        budget=budget,
        ending=codec.ending,
        passages=_documents(codec, passages),
        facts=_documents(codec, facts),
        queries=Texts(texts=queries, rows=asked),
    )


def _documents(codec: Codec, texts: list[str]) -> Texts:
    rows = [[*codec.document(text).tokens, codec.emb_id] for text in texts]
    return Texts(texts=texts, rows=rows)


def _sentences() -> Iterator[str]:
    """Those that are facts."""
    for text in _sources():
        for paragraph in re.split(r"\n\s*\n", text):
            for sentence in _SENTENCE.split(" ".join(paragraph.split())):
                if _is_fact(sentence):
                    yield sentence


def _is_fact(sentence: str) -> bool:
    """A sentence that is whole, and neither a heading nor a session of the interpreter."""
    whole = sentence[:1].isupper() and sentence.endswith(".") and ">>>" not in sentence
    return whole and len(sentence.split()) in _FACT_WORDS


def _sources() -> Iterator[str]:
    """The topics of the reference, then the docstrings of the library's modules."""
    from pydoc_data.topics import topics

    yield from (topics[name] for name in sorted(topics))
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, _DOCUMENTED):
                yield ast.get_docstring(node) or ""
