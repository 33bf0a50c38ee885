"""Thoughts to learn from: keywords of what answers, in an order that is drawn."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

KEYWORDS: Final = "keywords.jsonl"

WORDS: Final = 8
"""Most words of a thought. Nothing stands between two: a comma would cost a token."""

TOKENS: Final = 16
"""Longest thought, in tokens of the student."""


@dataclass(frozen=True, kw_only=True)
class Wording:
    """Words of one example in an order that was drawn.

    Attributes:
        tokens: Of the words, one after the other; no token twice.
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
    begins: a thought in one order would say that all others are wrong. The square has the best
    words come first mostly, where a small budget still has room for them.

    Args:
        words: Weights of words, by their tokens.
        rng: What draws.
        most: Words.
        budget: Tokens.
        close: The token behind the last word.

    Returns:
        As many words as there are, and as fit.
    """
    left = {word: weight**2 for word, weight in words.items() if len(set(word)) == len(word)}
    tokens: tuple[int, ...] = ()
    goals: list[Mapping[int, float]] = []
    for _ in range(most):
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
        goals += [dict(begins), *({token: 1.0} for token in chosen[1:])]
        tokens += chosen
    return Wording(tokens=tokens, goals=[*goals, {close: 1.0}])


def read_keywords(folder: Path, examples: int) -> list[dict[str, float]]:
    """What keywords.py wrote: weights of words, by example.

    Args:
        folder: The stream's.
        examples: How many the stream has.

    Raises:
        ValueError: If it wrote none, or for another stream.
    """
    path = folder / KEYWORDS
    lines = path.read_bytes().splitlines() if path.exists() else []
    if len(lines) != examples:
        raise ValueError(
            f"{path} has words of {len(lines)} examples for {examples}: run recipes.nano.keywords"
        )
    return [msgspec.json.decode(line, type=dict[str, float]) for line in lines]
