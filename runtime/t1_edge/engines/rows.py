"""The rows of a session: what every engine keeps of them, and what it asks of them.

Whatever an engine must refuse is refused here, so that all refuse alike.
"""

from collections.abc import Iterable, Mapping, Sequence

from t1_edge.errors import EngineError, InputError


class Rows:
    """Token rows that grow at their right ends.

    Args:
        rows: Token ids, one or more a row.
        room: How many tokens any row may grow by.
        vocabulary: Ids are below it.
        context: Longest row that the engine can hold.

    Attributes:
        tokens: The ids of each row.
        cached: How many of them the engine's cache holds.
        scored: Whether the logits that the engine keeps for a row are those of its last token.
        open: Whether the session is.

    Raises:
        InputError: If there is no row, a row is empty, a token is not in the vocabulary, or the
            room is below 1.
        EngineError: If the longest row and its room exceed the context.
    """

    def __init__(
        self, rows: Sequence[Sequence[int]], *, room: int, vocabulary: int, context: int
    ) -> None:
        if not rows or not all(rows):
            raise InputError("a session needs at least one row, and a row at least one token")
        if room < 1:
            raise InputError(f"a session needs room for 1 token or more, not {room}")
        self._vocabulary = vocabulary
        for row in rows:
            self._check_ids(row)
        self.open = True
        self.tokens = [list(row) for row in rows]
        self._limits = [len(row) + room for row in rows]
        if self.longest > context:
            raise EngineError(
                f"a row of {self.longest - room} tokens with room for {room} more exceeds the "
                f"context of {context}: lower the budget, or the contract's limits"
            )
        self.cached = [0] * len(rows)
        self.scored = [False] * len(rows)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def longest(self) -> int:
        """Tokens of the longest row once it has used its room."""
        return max(self._limits)

    @property
    def cells(self) -> int:
        """Tokens of all rows once they have used their room."""
        return sum(self._limits)

    def append(self, tokens: Mapping[int, int]) -> None:
        """Add one token to some rows.

        Raises:
            InputError: If a token is not in the vocabulary.
            EngineError: If the session is closed, or a row has used up its room.
        """
        self.check_open()
        self._check_ids(tokens.values())
        for row in tokens:
            self._check_room(row)
        for row, token in tokens.items():
            self.tokens[row].append(token)
            self.scored[row] = False

    def check_peek(self, tokens: Sequence[int]) -> None:
        """Whether tokens may stand at the end of every row.

        Raises:
            InputError: If there is none, or one is not in the vocabulary.
            EngineError: If the session is closed, or a row has not so much room left.
        """
        self.check_open()
        if not tokens:
            raise InputError("a peek needs at least one token")
        self._check_ids(tokens)
        for row in range(len(self)):
            self._check_room(row, len(tokens))

    def check_open(self) -> None:
        """Whether the session is open.

        Raises:
            EngineError: If it is closed.
        """
        if not self.open:
            raise EngineError("the session is closed")

    def keep(self) -> None:
        """Every token is in the cache now."""
        self.cached = [len(row) for row in self.tokens]

    def _check_ids(self, ids: Iterable[int]) -> None:
        outside = next((t for t in ids if not 0 <= t < self._vocabulary), None)
        if outside is not None:
            size = self._vocabulary
            raise InputError(f"token {outside} is not one of the {size} of the vocabulary")

    def _check_room(self, row: int, tokens: int = 1) -> None:
        length, limit = len(self.tokens[row]), self._limits[row]
        if length + tokens > limit:
            raise EngineError(f"row {row} is full: it was opened to hold {limit} tokens")


def check_prime(current: Rows | None) -> None:
    """Whether an engine may be told what rows begin with.

    Args:
        current: Rows of the session before, if there was one; none may be open.

    Raises:
        EngineError: If not.
    """
    if current is not None and current.open:
        raise EngineError("a session is still open; close it before saying what rows begin with")


def check_start(current: Rows | None, rows: int, most: int, *, closed: bool) -> None:
    """Whether an engine may open a session.

    Args:
        current: Rows of the session before, if there was one; only one is open at a time.
        rows: How many it shall have.
        most: How many it may have.
        closed: Whether the engine is closed.

    Raises:
        EngineError: If not.
    """
    if closed:
        raise EngineError("the engine is closed")
    if current is not None and current.open:
        raise EngineError("a session is still open; close it before starting another")
    if rows > most:
        raise EngineError(f"{rows} rows at once: the engine takes {most} at most")
