"""Words that documents are known by: what a thought is made of.

    python -m recipes.nano.keywords --data DIR

Writes keywords.jsonl beside the stream, one line an example: the words of its answers with the
highest tf-idf that its question lacks. The student learns to write them (stages.py).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import bm25s
import click
import msgspec
import numpy as np
import Stemmer

from recipes.nano.data import read_examples

KEYWORDS: Final = "keywords.jsonl"

_MOST: Final = 16
"""Words of an example that are kept."""

_SEEN: Final = 3
"""Documents that a word stands in at least: nobody learns to write a rarer one."""

_ANSWERS: Final = 6
"""Documents of an example that are looked at."""

_WORD: Final = re.compile(r"[a-z][a-z'-]+")
_STEM: Final = Stemmer.Stemmer("english")
_STOP: Final = frozenset(bm25s.tokenization.STOPWORDS_EN) | frozenset(
    "according another any can cause causes each else first has have his its kind kinds made make "
    "makes mean means most object one other our part place refers same something thing things type "
    "use used usually which who your".split()
)
"""Words that no thought needs: the second half is what definitions are full of."""


class Keywords:
    """tf-idf over a pool of documents.

    Args:
        documents: The texts.
        seen: Documents that a word stands in at least.
    """

    def __init__(self, documents: Sequence[str], *, seen: int = 1) -> None:
        self._count, self._seen = len(documents), seen
        self._frequency = Counter(stem for text in documents for stem in set(_stems(text)))

    def weighed(self, text: str, without: str, most: int) -> dict[str, float]:
        """The words of a text with the highest tf-idf, the highest first, as the text spells them.

        Args:
            text: Where they come from.
            without: Words that are left out, whatever their ending.
            most: How many.
        """
        known = set(_stems(without))
        spelled: dict[str, str] = {}
        counts: Counter[str] = Counter()
        for word, stem in zip(_words(text), _stems(text), strict=True):
            if stem not in known and stem not in _STOP and word not in _STOP and len(word) > 2:
                spelled.setdefault(stem, word)
                counts[stem] += 1
        weights = {
            stem: float((1 + np.log(count)) * self._rarity(stem))
            for stem, count in counts.items()
            if self._frequency[stem] >= self._seen
        }
        best = sorted(weights, key=lambda stem: -weights[stem])[:most]
        return {spelled[stem]: weights[stem] for stem in best}

    def _rarity(self, stem: str) -> float:
        return float(np.log(self._count / (1 + self._frequency[stem])))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _stems(text: str) -> list[str]:
    found: list[str] = _STEM.stemWords(_words(text))
    return found


@dataclass(frozen=True, kw_only=True)
class Wording:
    """A thought to learn from: words of one example in an order that was drawn.

    Attributes:
        tokens: Of the words, one after the other.
        goals: What might stand at each place and behind the last, with probabilities that add up
            to 1: where a word begins, the first token of any word that is left.
    """

    tokens: tuple[int, ...]
    goals: Sequence[Mapping[int, float]]


def draw_wording(
    words: Mapping[tuple[int, ...], float],
    rng: np.random.Generator,
    *,
    most: int,
    budget: int,
    close: int,
) -> Wording:
    """Draw words without replacement, as likely as the square of their weights.

    The order of keywords means nothing, so each of the words that are left is a goal where one
    begins: a thought in one order would say that all others are wrong.

    Args:
        words: Weights of words, by their tokens.
        rng: What draws.
        most: Words.
        budget: Tokens.
        close: The token behind the last word.
    """
    left = {word: weight**2 for word, weight in words.items() if len(set(word)) == len(word)}
    tokens: tuple[int, ...] = ()
    goals: list[Mapping[int, float]] = []
    for _ in range(most):
        # No token stands twice in a thought.
        left = {
            word: share
            for word, share in left.items()
            if len(tokens) + len(word) <= budget and not set(word) & set(tokens)
        }
        if not left:
            break
        total = sum(left.values())
        begins: dict[int, float] = defaultdict(float)
        for word, share in left.items():
            begins[word[0]] += share / total
        shares = np.array([*left.values()]) / total
        chosen = [*left][int(rng.choice(len(left), p=shares))]
        goals += [begins, *({token: 1.0} for token in chosen[1:])]
        tokens += chosen
    return Wording(tokens=tokens, goals=[*goals, {close: 1.0}])


def read_keywords(folder: Path) -> list[dict[str, float]]:
    """What this wrote, by example."""
    lines = (folder / KEYWORDS).read_bytes().splitlines()
    return [msgspec.json.decode(line, type=dict[str, float]) for line in lines]


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
def main(data: Path) -> None:
    """Write the words of the stream beside it."""
    documents, examples = read_examples(data)
    keywords = Keywords(documents, seen=_SEEN)
    with (data / KEYWORDS).open("wb") as file:
        for example in examples:
            answers = " ".join(documents[at] for at in example.positives[:_ANSWERS])
            found = keywords.weighed(answers, example.query, _MOST)
            file.write(msgspec.json.encode(found) + b"\n")


if __name__ == "__main__":
    main()
