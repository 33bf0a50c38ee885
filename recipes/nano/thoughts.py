"""Thoughts for the joint stage: keywords that bring an example's documents up.

    python -m recipes.nano.thoughts --data DIR --student ADAPTER

Candidates are the words with the highest tf-idf of the documents that answer, and of the rationale
where there is one, without the words of the question. A candidate is kept where it raises the best
rank of an answer for at least two of three judges: BM25, all-MiniLM-L6-v2, and the direct model.
Writes thoughts.jsonl, one line an example: "" where nothing helped, null where it was not judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import bm25s
import click
import numpy as np
import Stemmer
import torch
from numpy.typing import NDArray

from recipes.nano.data import Example, groups, kept_positives, read_examples, write_lines
from recipes.nano.keywords import Keywords, answer_text
from recipes.nano.model import Student, load_student
from recipes.nano.ranks import best_ranks
from recipes.nano.stream import THOUGHTS, cut, read_thoughts, words_as_tokens
from recipes.nano.teacher import embed
from recipes.nano.wording import TOKENS, WORDS
from t1_edge.contract import Codec

_LENGTHS: Final = (WORDS // 2, WORDS)
"""Of the candidates, in words."""

_JUDGES_NEEDED: Final = 2

_QUERY_TOKENS: Final = 64
_DOCUMENT_TOKENS: Final = 64
"""Of a row that the direct model judges."""

_STEM: Final = Stemmer.Stemmer("english")


class Judge(Protocol):
    """Scores a pool of documents for questions."""

    def scores(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """float32 [queries, documents of the pool]."""


class BM25Judge:
    """BM25 with stop words and stemmer, as the bench has it.

    Args:
        documents: The pool.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        self._count = len(documents)
        self._index = bm25s.BM25()
        self._index.index(self._cut(documents), show_progress=False)

    def scores(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """See `Judge`; a question of stop words alone scores 0."""
        return np.stack([self._score(words) for words in self._cut(queries)])

    def _score(self, words: list[str]) -> NDArray[np.float32]:
        if not words:
            return np.zeros(self._count, np.float32)
        return np.asarray(self._index.get_scores(words), np.float32)

    @staticmethod
    def _cut(texts: Sequence[str]) -> list[list[str]]:
        cut: list[list[str]] = bm25s.tokenize(
            list(texts), stopwords="en", stemmer=_STEM, return_ids=False, show_progress=False
        )
        return cut


@dataclass(frozen=True, kw_only=True)
class VectorJudge:
    """Cosine.

    Attributes:
        documents: float32 [documents, d], unit rows, the pool.
        embed: Texts of questions to unit vectors, float [n, d].
    """

    documents: NDArray[np.float32]
    embed: Any

    def scores(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """See `Judge`."""
        found: NDArray[np.float32] = np.float32(self.embed(queries)) @ self.documents.T
        return found


@dataclass(frozen=True)
class Reader:
    """A student that embeds texts directly.

    Attributes:
        student: The model.
        codec: Its contract.
        texts: The documents of the stream.
    """

    student: Student
    codec: Codec
    texts: Sequence[str]
    _read: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    def length(self, thought: str) -> int:
        """Of a thought, in tokens."""
        return len(words_as_tokens(self.codec, thought))

    @torch.no_grad()
    def queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors behind an empty thought, float32 [n, d]."""
        end = self.codec.ending
        rows = [cut(self.codec.query(text).tokens, _QUERY_TOKENS) + end for text in texts]
        return self._vectors(rows)

    @torch.no_grad()
    def documents(self, chosen: Sequence[int]) -> NDArray[np.float32]:
        """Unit vectors of documents of the stream, float32 [n, d]; each is read once."""
        new = [at for at in chosen if at not in self._read]
        if new:
            tokens = [self.codec.document(self.texts[at]).tokens for at in new]
            rows = [(*cut(row, _DOCUMENT_TOKENS - 1), self.codec.emb_id) for row in tokens]
            found = self._vectors(rows)
            self._read.update(zip(new, found, strict=True))
        return np.stack([self._read[at] for at in chosen])

    def _vectors(self, rows: Sequence[tuple[int, ...]]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.student.vectors(rows).cpu().numpy()
        return found


def candidates(example: Example, answer: str, keywords: Keywords) -> list[str]:
    """What might help: keywords of the answer, and of the rationale, at several lengths."""
    found = []
    for source in (answer, example.rationale):
        words = [*keywords.weighed(source, example.query, WORDS)]
        found += [" ".join(words[:most]) for most in _LENGTHS if words]
    return list(dict.fromkeys(found))


def choose(
    examples: Sequence[Example],
    options: Sequence[Sequence[str]],
    answers: NDArray[np.bool_],
    judges: Sequence[Judge],
) -> list[str]:
    """The candidate of each example that helps most, "" where fewer than two judges agree.

    Args:
        examples: Of one set.
        options: Candidates by example.
        answers: bool [examples, documents of the judges' pool].
        judges: Three.
    """
    owner = np.array([at for at, texts in enumerate(options) for _ in texts], np.int64)
    flat = [text for texts in options for text in texts]
    asked = [f"{examples[at].query} {text}" for at, text in zip(owner, flat, strict=True)]
    gains = np.zeros((len(judges), len(flat)), np.float32)
    for row, judge in zip(gains, judges, strict=True):
        plain = best_ranks(judge.scores([e.query for e in examples]), answers)
        thought = best_ranks(judge.scores(asked), answers[owner])
        row[:] = np.log(plain[owner] / thought)
    helped = (gains > 0).sum(axis=0) >= _JUDGES_NEEDED
    total = np.where(helped, gains.sum(axis=0), 0)
    chosen = [""] * len(examples)
    for at in np.argsort(total):  # the best one is written last
        if total[at] > 0:
            chosen[owner[at]] = flat[at]
    return chosen


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--student", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--most", default=1500, show_default=True, help="Examples of a set that are judged.")
@click.option("--whole", multiple=True, help="A set whose examples are all judged.")
@click.option("--distractors", default=8000, show_default=True, help="Documents to rank among.")
def main(data: Path, student: Path, most: int, whole: Sequence[str], distractors: int) -> None:
    """Write the thoughts of the stream beside it; called again, go on with what is not judged."""
    documents, examples = read_examples(data)
    reader = Reader(*load_student(student), documents)
    kept = kept_positives(data, examples)
    teacher = np.load(data / "documents.npy")
    others = np.random.default_rng(0).choice(len(documents), distractors, replace=False)
    thoughts = read_thoughts(data, len(examples))
    if unknown := set(whole) - {example.set for example in examples}:
        raise click.BadParameter(f"no set {min(unknown)!r}", param_hint="--whole")
    for name, members in groups(examples):
        judged = members if name.split()[0] in whole else members[:most]
        due = [at for at in judged if thoughts[at] is None]
        if due:
            answers = [answer_text(kept[at], documents) for at in due]
            found = _judge(reader, [examples[at] for at in due], answers, others, teacher)
            for at, text in zip(due, found, strict=True):
                thoughts[at] = text
            write_lines(data / THOUGHTS, thoughts)
            click.echo(f"{name}: {sum(map(bool, found))} of {len(due)} have a thought that helps")


def _judge(
    reader: Reader,
    examples: Sequence[Example],
    answers: Sequence[str],
    others: NDArray[np.int64],
    teacher: NDArray[np.float16],
) -> list[str]:
    pool = np.unique(np.concatenate([*(e.positives for e in examples), others]))
    texts = [reader.texts[at] for at in pool]
    positives = np.stack([np.isin(pool, e.positives) for e in examples])
    keywords = Keywords(texts)
    options = [
        [text for text in candidates(e, answer, keywords) if reader.length(text) <= TOKENS]
        for e, answer in zip(examples, answers, strict=True)
    ]
    judges: list[Judge] = [
        BM25Judge(texts),
        VectorJudge(documents=teacher[pool].astype(np.float32), embed=partial(embed, rounded=True)),
        VectorJudge(documents=reader.documents(pool.tolist()), embed=reader.queries),
    ]
    return choose(examples, options, positives, judges)


if __name__ == "__main__":
    main()
