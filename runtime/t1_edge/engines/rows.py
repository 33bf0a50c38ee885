"""The rows of a session: what every engine keeps of them, and what it asks of them."""

from collections.abc import Mapping, Sequence

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

    Raises:
        InputError: If there is no row, a row is empty, or a token is not in the vocabulary.
        EngineError: If the longest row and its room exceed the context.
    """

    def __init__(
        self, rows: Sequence[Sequence[int]], *, room: int, vocabulary: int, context: int
    ) -> None:
        if not rows or not all(rows):
            raise InputError("a session needs at least one row, and a row at least one token")
        outside = next((t for row in rows for t in row if not 0 <= t < vocabulary), None)
        if outside is not None:
            raise InputError(f"token {outside} is not one of the {vocabulary} of the vocabulary")
        self.tokens = [list(row) for row in rows]
        self._limits = [len(row) + room for row in rows]
        if self.longest > context:
            raise EngineError(f"a row of {self.longest} tokens exceeds the context of {context}")
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
            EngineError: If a row has used up the room it was opened with.
        """
        for row, token in tokens.items():
            if len(self.tokens[row]) == self._limits[row]:
                limit = self._limits[row]
                raise EngineError(f"row {row} is full: it was opened with room for {limit} tokens")
            self.tokens[row].append(token)
            self.scored[row] = False

    def keep(self) -> None:
        """Every token is in the cache now."""
        self.cached = [len(row) for row in self.tokens]
