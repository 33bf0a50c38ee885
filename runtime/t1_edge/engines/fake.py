"""An engine without a model: its numbers depend on a row's tokens, and on nothing else.

It is shipped for the tests of apps that embed t1-edge, and passes the contract tests of the real
engines. A row's state is a decaying sum of random token vectors, so that order matters.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from t1_edge.engines.base import EngineInfo, Float32Array
from t1_edge.engines.rows import Rows, check_prime, check_start

_DECAY: Final = np.float32(0.9)
_CONTEXT: Final = 8192


class FakeEngine:
    """See `t1_edge.engines.base.Engine`.

    Args:
        vocabulary: How many token ids there are.
        hidden: Dimensions of a hidden state.
    """

    batch_tokens = 256
    batch_rows = 64

    def __init__(self, *, vocabulary: int, hidden: int = 32) -> None:
        table = np.random.default_rng(0).standard_normal((vocabulary, hidden))
        self.table: Float32Array = table.astype(np.float32)
        self.info = EngineInfo(engine="fake", library="fake", device="cpu", threads=1)
        self._rows: Rows | None = None
        self._closed = False

    def prime(self, beginnings: Sequence[Sequence[int]]) -> None:
        """Every row is computed whole."""
        check_prime(self._rows)

    def start(self, rows: Sequence[Sequence[int]], *, room: int) -> "FakeSession":
        """Open a session over a batch of token rows."""
        check_start(self._rows, len(rows), self.batch_rows, closed=self._closed)
        self._rows = Rows(rows, room=room, vocabulary=len(self.table), context=_CONTEXT)
        return FakeSession(self.table, self._rows)

    def close(self) -> None:
        """Nothing is started any more."""
        self._closed = True


class FakeSession:
    """See `t1_edge.engines.base.Session`."""

    def __init__(self, table: Float32Array, rows: Rows) -> None:
        self._table = table
        self._rows = rows

    def append(self, tokens: Mapping[int, int]) -> None:
        """Add one token to the right end of some rows."""
        self._rows.append(tokens)

    def logits(self) -> Float32Array:
        """Inner products of each row's state with every token's vector."""
        self._rows.check_open()
        return np.stack([self._state(row) for row in self._rows.tokens]) @ self._table.T

    def peek(self, *tokens: int) -> Float32Array:
        """States of the rows with some more tokens."""
        self._rows.check_peek(tokens)
        return np.stack([self._state([*row, *tokens]) for row in self._rows.tokens])

    def close(self) -> None:
        """Nothing is computed any more."""
        self._rows.open = False

    def __enter__(self) -> "FakeSession":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _state(self, row: Sequence[int]) -> Float32Array:
        weights = _DECAY ** np.arange(len(row) - 1, -1, -1, dtype=np.float32)
        return np.asarray(weights @ self._table[list(row)], np.float32)
