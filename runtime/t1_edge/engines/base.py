"""The boundary between everything that thinks and searches, and what multiplies matrices.

An engine opens sessions; a session is a batch of token rows that grows at its right end. Nothing
else is asked of an engine, and nothing above this module knows which engine runs.

A session is lazy: `Session.append` only notes tokens, and they are computed together when
`Session.logits` or `Session.peek` needs them. So a document is one pass over its text *and*
`<emb_token>`, and what closes a thought is peeked at with it, so that the thought can go on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What really runs: reported with every result.

    Attributes:
        engine: "onnx", "gguf" or "fake"; the build format that is driven.
        library: The library and its version, such as "onnxruntime 1.32.0".
        device: "cpu", "cuda", "metal" or "webgpu": where the matrices really are multiplied.
        threads: CPU threads the engine may use.
        graph: Which of a build's graphs it runs: "everything", or "documents" alone.
    """

    engine: str
    library: str
    device: str
    threads: int
    graph: str = "everything"


class Session(Protocol):
    """A batch of token rows in one KV cache. Use as a context manager, or call `close`."""

    def append(self, tokens: Mapping[int, int]) -> None:
        """Add one token to the right end of some rows.

        Args:
            tokens: Row number to token id. Rows that are absent stay as they are.

        Raises:
            InputError: If a token is not in the vocabulary; nothing is added then.
            EngineError: If a row would outgrow the room it was opened with (nothing is added
                then), or the session is closed.
        """

    def logits(self) -> Float32Array:
        """Scores of the next token after each row, float32 [rows, vocabulary].

        Raises:
            EngineError: If the library fails, which changes nothing, memory runs out, which may
                end the session, or it is closed.
        """

    def peek(self, *tokens: int) -> Float32Array:
        """Hidden states of the last token that is given, were all at each row's end; none is kept.

        Args:
            tokens: One or more, the same for every row.

        Returns:
            float32 [rows, hidden], after the final norm, not L2-normalised; the caller's.

        Raises:
            InputError: If there is no token, or one is not in the vocabulary.
            EngineError: If the library fails, which changes nothing, memory runs out, which may
                end the session, a row has no room left for them, or the session is closed.
        """

    def close(self) -> None:
        """Free the KV cache. The session cannot be used afterwards; closing twice is harmless."""

    def __enter__(self) -> "Session": ...

    def __exit__(self, *exc: object) -> None: ...


class Engine(Protocol):
    """One build, opened on one device. One session is open at a time.

    Attributes:
        batch_tokens: Padded tokens of rows that run well together; callers batch by it.
        batch_rows: Most rows of a session.
    """

    batch_tokens: int
    batch_rows: int

    @property
    def info(self) -> EngineInfo:
        """What runs this engine, and where."""

    def prime(self, beginnings: Sequence[Sequence[int]]) -> None:
        """Say what many rows begin with, so that it may be computed once and not for each.

        Where a row is cut by that depends on the row alone, never on its batch.

        Args:
            beginnings: Token ids, two or more each. Those of an earlier call are forgotten.

        Raises:
            EngineError: If a session is open; nothing is forgotten then.
        """

    def start(self, rows: Sequence[Sequence[int]], *, room: int) -> Session:
        """Open a session over a batch of token rows.

        Args:
            rows: Token ids, one or more a row; rows may differ in length.
            room: How many tokens any row may still grow by, peeked ones included; 1 or more.

        Raises:
            InputError: If there is no row, a row is empty, a token is not in the vocabulary, or
                the room is below 1.
            EngineError: If the rows and their room do not fit the engine, or memory (it says how
                many might, and takes so many next), another session is open, or the engine is
                closed.
        """

    def close(self) -> None:
        """Free the weights. Closing twice is harmless."""
