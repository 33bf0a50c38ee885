"""Words that documents are known by: what a thought is made of.

    python -m recipes.nano.keywords --data DIR

Writes keywords.jsonl beside what data.py and teacher.py wrote, one line an example: the words of
its answers with the highest tf-idf that its question lacks, and their weights.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import bm25s
import click
import numpy as np
import Stemmer
from numpy.typing import NDArray

from recipes.nano.data import kept_positives, read_examples, write_lines
from recipes.nano.wording import KEYWORDS

_MOST: Final = 16
"""Words of an example that are kept."""

_SEEN: Final = 3
"""Documents that a word stands in at least: nobody learns to write a rarer one."""

_ANSWERS: Final = 6
"""Documents of an example that are looked at."""

_WORD: Final = re.compile(r"[a-z]+(?:['-][a-z]+)*")
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
        """The words of a text with the highest tf-idf, the highest first, and that weight.

        It is (1 + ln n) ln(N / (1 + d)), where n is how often the text has the word, and d how many
        of the pool's N documents do (Manning, Raghavan and Schütze, Introduction to Information
        Retrieval, 6.4). Words are lower case, as the text first spells them.

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


def answer_text(kept: NDArray[np.int64], documents: Sequence[str]) -> str:
    """What answers an example, as one text.

    Args:
        kept: Lines of those that the teacher kept: of a set that names whole sections, not all do.
        documents: The texts of the stream.
    """
    return " ".join(documents[at] for at in kept[:_ANSWERS])


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
def main(data: Path) -> None:
    """Write the words of the stream beside it."""
    documents, examples = read_examples(data)
    keywords = Keywords(documents, seen=_SEEN)
    answers = [answer_text(kept, documents) for kept in kept_positives(data, examples)]
    found = (
        keywords.weighed(text, example.query, _MOST)
        for text, example in zip(answers, examples, strict=True)
    )
    write_lines(data / KEYWORDS, found)


if __name__ == "__main__":
    main()
