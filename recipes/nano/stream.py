"""Batches of the training stream, tokenized as the runtime will tokenize.

A batch depends on the seed and the step alone, so that a run that goes on later sees what it would
have seen.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from recipes.nano.data import draw_distractors, kept_positives, read_examples
from recipes.nano.ranks import best_ranks
from recipes.nano.wording import Wording, draw_wording, read_keywords
from t1_edge.contract import Codec

THOUGHTS: Final = "thoughts.jsonl"

Rows = Sequence[tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples of one step.

    Attributes:
        examples: int64 [b], which.
        documents: int64 [n], the positives of the examples in order, then their hard negatives.
        answers: bool [b, n], whether a document is known to answer an example.
    """

    examples: NDArray[np.int64]
    documents: NDArray[np.int64]
    answers: NDArray[np.bool_]

    @property
    def seed(self) -> int:
        """Of what is drawn for this batch: the same whenever the step runs again."""
        return int(self.documents.sum())


class Stream:
    """The stream that data.py and teacher.py wrote.

    Args:
        folder: Where they wrote it.
        codec: The contract, bound to the base's tokenizer.
        query_tokens: A query is cut to so many tokens, template included.
        document_tokens: A document likewise, emb_token included.
        judged: Draw only examples for which thoughts were looked for, and sets by how many were
            found instead of by how many examples they have.
        together: Examples of one set that stand together in a batch, for their negatives to be of
            their kind.
        helped: Share of those that are drawn from the ones that a thought helped.
        weights: How many times its share a set is drawn, by name; 1 where it is not named.

    Attributes:
        examples: Of examples.jsonl, in its order.
        queries: Token ids by example: the query in its template, up to where a thought begins.
        thoughts: Token ids by example, none where no thought is known to help.
        documents: Token ids by line of documents.jsonl, emb_token included.
        codec: As given.

    Raises:
        ValueError: If there is no set of a name that has a weight, `judged` and nothing is, or
            `helped` and nothing did.
    """

    def __init__(
        self,
        folder: Path,
        codec: Codec,
        *,
        query_tokens: int,
        document_tokens: int,
        judged: bool = False,
        together: int = 16,
        helped: float = 0,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        texts, self.examples = read_examples(folder)
        self._teacher_queries = np.load(folder / "queries.npy")
        self._teacher_documents = np.load(folder / "documents.npy")
        self._negatives = np.load(folder / "negatives.npy")
        self._kept = kept_positives(folder, self.examples)
        self.codec = codec
        # The template's end stays: a query is prefix + text + <think>, cut before the last two.
        self.queries: Rows = [cut(codec.query(e.query).tokens, query_tokens) for e in self.examples]
        self.documents: Rows = [
            (*cut(codec.document(text).tokens, document_tokens - 1), codec.emb_id) for text in texts
        ]
        found = read_thoughts(folder, len(self.examples))
        self.thoughts: Rows = [words_as_tokens(codec, text or "") for text in found]
        unknown = {at for at, text in enumerate(found) if text is None} if judged else set()
        self._folder = folder
        self._parts = {part: self._members(part, unknown) for part in ("train", "dev")}
        if not self._parts["train"]:
            raise ValueError(f"{folder} has no example that was judged: run recipes.nano.thoughts")
        if helped and not any(self.thoughts):
            raise ValueError(
                f"{folder} has no thought that helped, for helped = {helped}: "
                "run recipes.nano.thoughts"
            )
        self._together, self._helped = together, round(together * helped)
        self._shares = self._set_shares(judged, weights or {})

    def _members(self, part: str, without: Container[int]) -> Mapping[str, NDArray[np.int64]]:
        own = [(at, e.set) for at, e in enumerate(self.examples) if e.part == part]
        kept = [(at, name) for at, name in own if at not in without]
        return {
            name: np.array([at for at, set_ in kept if set_ == name])
            for name in sorted({name for _, name in kept})
        }

    def _set_shares(self, judged: bool, weights: Mapping[str, float]) -> NDArray[np.float64]:
        """How likely a group of a batch is of each set of train: by the root of a count."""
        sets = self._parts["train"]
        if unknown := weights.keys() - sets.keys():
            raise ValueError(f"no set {min(unknown)!r} to weigh; there are {', '.join(sets)}")
        by_thoughts = judged and any(self.thoughts)
        sizes = [
            sum(bool(self.thoughts[at]) for at in members) if by_thoughts else len(members)
            for members in sets.values()
        ]
        roots = np.sqrt(np.maximum(sizes, 1)) * [weights.get(name, 1.0) for name in sets]
        return np.asarray(roots / roots.sum())

    @cached_property
    def _keywords(self) -> Sequence[Mapping[tuple[int, ...], float]]:
        found = read_keywords(self._folder, len(self.examples))
        distinct = {word for words in found for word in words}
        tokens = {word: words_as_tokens(self.codec, word) for word in distinct}
        return [{tokens[word]: weight for word, weight in words.items()} for words in found]

    def wording(self, at: int, rng: np.random.Generator, *, most: int, budget: int) -> Wording:
        """Words of an example's answers to learn to write, drawn; see `draw_wording`.

        Args:
            at: Which example.
            rng: What draws.
            most: Words.
            budget: Tokens.
        """
        close = self.codec.close_id
        return draw_wording(self._keywords[at], rng, most=most, budget=budget, close=close)

    def positives(self, at: int) -> NDArray[np.int64]:
        """Documents to train an example on, int64."""
        return self._kept[at]

    def batch(self, step: int, size: int, negatives: int, seed: int) -> Batch:
        """The batch of a step.

        Args:
            step: Counted from 0.
            size: Examples, a multiple of those that stand together; fewer where a set runs out.
            negatives: Hard negatives of each example.
            seed: Of the run.
        """
        rng = np.random.default_rng([seed, step])
        sets = self._parts["train"]
        drawn = rng.choice(list(sets), size=size // self._together, p=self._shares)
        groups = zip(*np.unique(drawn, return_counts=True), strict=True)
        examples = np.concatenate([self._draw_examples(sets[n], c, rng) for n, c in groups])
        positives = [rng.choice(self.positives(at)) for at in examples]
        hard = [self._draw_negatives(at, negatives, rng) for at in examples]
        rest = np.setdiff1d(np.concatenate(hard), positives)
        documents = np.concatenate([positives, rest]).astype(np.int64)
        return Batch(
            examples=examples, documents=documents, answers=self.answers(examples, documents)
        )

    def _draw_examples(
        self, members: NDArray[np.int64], groups: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Examples of one set, each once, int64 [groups * together], or all that it has."""
        helped = members[[bool(self.thoughts[at]) for at in members]] if self._helped else members
        first = rng.choice(helped, min(groups * self._helped, len(helped)), replace=False)
        rest = np.setdiff1d(members, first)
        more = min(groups * self._together - len(first), len(rest))
        return np.concatenate([first, rng.choice(rest, more, replace=False)])

    def _draw_negatives(self, at: int, count: int, rng: np.random.Generator) -> NDArray[np.int32]:
        pool = self._negatives[at][self._negatives[at] >= 0]
        return rng.choice(pool, min(count, len(pool)), replace=False)

    def answers(
        self, examples: NDArray[np.int64], documents: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Which documents are known to answer which examples, bool [examples, documents]."""
        return np.stack([np.isin(documents, self.examples[at].positives) for at in examples])

    def teacher(self, batch: Batch) -> NDArray[np.float32]:
        """The teacher's cosines, float32 [b, n]."""
        queries = self._teacher_queries[batch.examples].astype(np.float32)
        cosines: NDArray[np.float32] = (
            queries @ self._teacher_documents[batch.documents].astype(np.float32).T
        )
        return cosines

    def pool(self, count: int) -> NDArray[np.int64]:
        """Documents drawn from all there are, int64 [count]; the same ones always."""
        return np.random.default_rng(0).choice(len(self.documents), count, replace=False)

    def dev(self, most: int, distractors: int) -> "Pool":
        """Dev questions, at most so many a set, and what to find them in.

        Args:
            most: Questions of a set.
            distractors: Other documents, which answer none of these questions.
        """
        chosen = [members[:most] for members in self._parts["dev"].values()]
        examples = np.concatenate(chosen)
        own = np.unique(np.concatenate([self.examples[at].positives for at in examples]))
        documents = np.concatenate([own, draw_distractors(own, len(self.documents), distractors)])
        return Pool(
            sets=[self.examples[at].set for at in examples],
            examples=examples,
            documents=documents,
            answers=self.answers(examples, documents),
        )


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Questions and documents to rank for them.

    Attributes:
        sets: Name of each question's set.
        examples: int64 [q].
        documents: int64 [n].
        answers: bool [q, n].
    """

    sets: Sequence[str]
    examples: NDArray[np.int64]
    documents: NDArray[np.int64]
    answers: NDArray[np.bool_]

    def reciprocal_ranks(self, scores: NDArray[np.float32]) -> dict[str, float]:
        """Mean reciprocal rank of the first answer, by set and over the sets ("all").

        Args:
            scores: float32 [q, n].
        """
        ranks = 1 / best_ranks(scores, self.answers)
        found = {
            name: float(ranks[[s == name for s in self.sets]].mean())
            for name in sorted(set(self.sets))
        }
        return found | {"all": float(np.mean(list(found.values())))}


def words_as_tokens(codec: Codec, words: str) -> tuple[int, ...]:
    """Ids of words of a thought, the first of them behind a space as the others are.

    Behind none, words that are one token otherwise are two or three.
    """
    return codec.thought_tokens(f" {words}") if words else ()


def cut(row: tuple[int, ...], most: int) -> tuple[int, ...]:
    """A row without the end of its text: the last two tokens, the template's, stay."""
    return row if len(row) <= most else (*row[: most - 2], *row[-2:])


def read_thoughts(folder: Path, examples: int) -> list[str | None]:
    """What thoughts.py wrote, by example; None where it has not judged, or not run.

    Raises:
        ValueError: If it wrote for another stream.
    """
    path = folder / THOUGHTS
    if not path.exists():
        return [None] * examples
    lines = path.read_bytes().splitlines()
    if len(lines) != examples:
        raise ValueError(f"{path} has {len(lines)} lines for {examples} examples: remove it")
    return [msgspec.json.decode(line, type=str | None) for line in lines]
