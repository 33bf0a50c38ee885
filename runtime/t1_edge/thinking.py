"""The loop that writes thoughts: greedy, in the query's own KV cache, up to a budget."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from t1_edge.contract import Codec
from t1_edge.engines.base import Float32Array, Session

StopReason = Literal["budget", "closed", "stop_token", "deadline", "given"]


@dataclass(frozen=True, kw_only=True)
class Thought:
    """What a row thought.

    Attributes:
        tokens: The thought, without the tokens that open, close or stop it.
        stopped_by: "closed" if the model closed it, "stop_token" if it ended its turn, "budget"
            or "deadline" if it was forced shut, "given" if the caller wrote it.
    """

    tokens: tuple[int, ...]
    stopped_by: StopReason


def think(
    session: Session, rows: int, codec: Codec, *, budget: int, deadline: float | None = None
) -> list[Thought]:
    """Let every row of a session think, then close its thought.

    Afterwards each row ends with `think_close`, so that peeking `emb_token` gives the vector.

    Args:
        session: Opened over query rows, with room for budget + 2 tokens.
        rows: How many rows it has.
        codec: Knows the tokens that close and stop a thought.
        budget: Most tokens of a thought; 0 closes it at once.
        deadline: Time by `time.monotonic` after which no further token is written, in seconds.

    Returns:
        A thought for each row.
    """
    thoughts: list[list[int]] = [[] for _ in range(rows)]
    ended: dict[int, StopReason] = {}
    for _ in range(budget):
        if len(ended) == rows:
            break
        if deadline is not None and time.monotonic() >= deadline:
            ended = {row: ended.get(row, "deadline") for row in range(rows)}
            break
        _step(session, codec, thoughts, ended)
    session.append(dict.fromkeys(range(rows), codec.close_id))
    return [
        Thought(tokens=tuple(tokens), stopped_by=ended.get(row, "budget"))
        for row, tokens in enumerate(thoughts)
    ]


def _step(
    session: Session, codec: Codec, thoughts: Sequence[list[int]], ended: dict[int, StopReason]
) -> None:
    """Write one token to every row that still thinks."""
    scores = session.logits()
    if codec.contract.distinct:
        scores = _without_written(scores, thoughts)
    best = scores.argmax(axis=1)
    grown: dict[int, int] = {}
    for row, token in enumerate(best.tolist()):
        if row in ended:
            continue
        if token in (codec.close_id, codec.emb_id):
            ended[row] = "closed"
        elif token in codec.stop_ids:
            ended[row] = "stop_token"
        else:
            thoughts[row].append(token)
            grown[row] = token
    session.append(grown)


def _without_written(scores: Float32Array, thoughts: Sequence[Sequence[int]]) -> Float32Array:
    """Scores of the next token, those that a row's thought holds already ruled out."""
    left = scores.copy()
    for row, tokens in zip(left, thoughts, strict=True):
        row[list(tokens)] = -np.inf
    return left
