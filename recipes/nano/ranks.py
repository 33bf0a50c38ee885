"""Where answers stand in a ranking."""

import numpy as np
from numpy.typing import NDArray


def best_ranks(scores: NDArray[np.float32], answers: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Rank of each question's best answer, counted from 1, int64 [questions].

    Args:
        scores: float32 [questions, documents].
        answers: bool [questions, documents], one true in each row at least.
    """
    best = np.where(answers, scores, -np.inf).max(axis=1, keepdims=True)
    ranks: NDArray[np.int64] = 1 + (scores > best).sum(axis=1)
    return ranks
