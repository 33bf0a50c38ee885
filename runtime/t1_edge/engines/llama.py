"""llama.cpp, driving a build's model.gguf.

Text is read and thoughts are written without hidden states; of what is peeked at, the last token is
decoded by itself. The tokens that all rows begin with are computed once and belong to every row.
Token ids come from the build's own tokenizer; llama.cpp's is never asked.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from t1_edge.build import Decoder
from t1_edge.engines.base import EngineInfo, Float32Array
from t1_edge.engines.llama_context import MOST_ROWS, Context, Entry
from t1_edge.engines.room import check_room
from t1_edge.engines.rows import Rows, check_start
from t1_edge.tokenization import common_beginning


class LlamaEngine:
    """A build's GGUF. See `t1_edge.engines.base.Engine`.

    Args:
        model: A build's model.gguf.
        decoder: The shape that the manifest gives.
        threads: CPU threads.
        device: "cpu", or a GPU that llama.cpp was compiled for and finds: "cuda", "metal".
        exact: Keep the cache and attend in float32, at half the speed: what float builds are for.
            Otherwise both are float16, as llama.cpp has them by itself.
        pack: Pack weights anew for the processor's kernels; if None, where these run.

    Raises:
        EngineError: If llama.cpp refuses the file, or it is of another shape.
    """

    batch_tokens = 512  # every row's attention scans the whole shared cache
    batch_rows = MOST_ROWS

    def __init__(
        self,
        model: Path,
        decoder: Decoder,
        *,
        threads: int,
        device: str = "cpu",
        exact: bool = False,
        pack: bool | None = None,
    ) -> None:
        self._decoder = decoder
        self._exact = exact
        self._context = Context(
            model, decoder, threads=threads, exact=exact, device=device, pack=pack
        )
        self._rows: Rows | None = None
        library = self._context.library
        self.info = EngineInfo(engine="gguf", library=library, device=device, threads=threads)

    def prime(self, beginnings: Sequence[Sequence[int]]) -> None:
        """What the rows of a batch begin with is found in the batch."""

    def start(self, rows: Sequence[Sequence[int]], *, room: int) -> "LlamaSession":
        """Open a session over a batch of token rows; the one before must be closed."""
        check_start(self._rows, len(rows), self.batch_rows, closed=self._context.closed)
        shape = self._decoder
        ledger = Rows(rows, room=room, vocabulary=shape.vocabulary, context=shape.context)
        if self.info.device == "cpu" and ledger.cells > self._context.cells:
            mean = -(-ledger.cells // len(rows))  # rows share the cache
            check_room(shape, len(rows), mean, cache_bytes=4 if self._exact else 2)
        self._context.make_room(ledger.cells)
        self._rows = ledger
        return LlamaSession(self._context, shape, ledger)

    def close(self) -> None:
        """Free the context and the weights."""
        self._context.close()


class LlamaSession:
    """A batch of rows in the engine's cache. See `t1_edge.engines.base.Session`."""

    def __init__(self, context: Context, decoder: Decoder, rows: Rows) -> None:
        self._context = context
        self._rows = rows
        self._logits = np.zeros((len(rows), decoder.vocabulary), np.float32)
        self._hidden = np.zeros((len(rows), decoder.hidden), np.float32)

    def append(self, tokens: Mapping[int, int]) -> None:
        """Note one more token for some rows."""
        self._rows.append(tokens)

    def logits(self) -> Float32Array:
        """Scores of the next token after each row, float32 [rows, vocabulary]."""
        rows = self._rows
        rows.check_open()
        for row, tokens in enumerate(rows.tokens):
            # A peek caches tokens without their logits: the last one has to run again.
            if not rows.scored[row] and rows.cached[row] == len(tokens):
                rows.cached[row] -= 1
                self._context.forget_from(row, rows.cached[row])
        self._run_pending(scored=True)
        rows.scored = [True] * len(rows)
        return self._logits.copy()

    def peek(self, *tokens: int) -> Float32Array:
        """Hidden states of the last token, were all at each row's end, float32 [rows, hidden]."""
        self._rows.check_peek(tokens)
        *lead, last = tokens
        self._run_pending(scored=False, lead=lead)
        rows = self._rows.tokens
        ends = [Entry(last, len(row) + len(lead), at, True) for at, row in enumerate(rows)]
        self._context.hidden(ends, self._hidden)
        for at, row in enumerate(rows):
            self._context.forget_from(at, len(row))
        return self._hidden.copy()

    def close(self) -> None:
        """The next session empties the cache."""
        self._rows.open = False

    def __enter__(self) -> "LlamaSession":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run_pending(self, *, scored: bool, lead: Sequence[int] = ()) -> None:
        """Cache the tokens that are not cached yet; with the last ones' logits if `scored`.

        What leads to a peeked token is cached behind each row, and does not belong to it.
        """
        if not any(self._rows.cached):
            self._run_prefix()
        entries = [
            Entry(token, at, row, scored and at == len(tokens) - 1)
            for row, tokens in enumerate(self._rows.tokens)
            for at, token in enumerate((*tokens, *lead))
            if at >= self._rows.cached[row]
        ]
        self._context.logits(entries, self._logits)
        self._rows.keep()

    def _run_prefix(self) -> None:
        """Cache what all rows begin with, once; each row keeps a token of its own."""
        rows = self._rows.tokens
        shared = len(common_beginning([row[:-1] for row in rows]))
        if len(rows) == 1 or shared == 0:
            return
        entries = [Entry(rows[0][at], at, 0, False) for at in range(shared)]
        self._context.logits(entries, self._logits)
        self._context.share_prefix(len(rows), shared)
        self._rows.cached = [shared] * len(rows)
