"""llama.cpp, driving a build's model.gguf.

Text is read and thoughts are written without hidden states. What a peek still has to read is
decoded together with the peeked token where that is little, and before it by itself where it is
much. The tokens that all rows of a batch begin with are computed once and belong to every row,
where all hold equally much of what is kept. Token ids come from the build's own tokenizer;
llama.cpp's is never asked.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from t1_edge.build import Decoder
from t1_edge.engines.base import EngineInfo, Float32Array
from t1_edge.engines.llama_context import MOST_ROWS, TOGETHER, Context, Entry
from t1_edge.engines.room import check_room, memory_for
from t1_edge.engines.rows import Rows, check_prime, check_start
from t1_edge.tokenization import common_beginning


class LlamaEngine:
    """A build's GGUF. See `t1_edge.engines.base.Engine`.

    Args:
        model: A build's model.gguf.
        decoder: The shape that the manifest gives.
        threads: CPU threads.
        device: "cpu", or a GPU that llama.cpp was compiled for and finds: "cuda", "metal",
            "webgpu".
        exact: Keep the cache and attend in float32, at half the speed: what float builds are for.
            Otherwise both are float16, as llama.cpp has them by itself.
        pack: Pack weights anew for the processor's kernels; if None, where these run.
        observer: A `ggml_backend_sched_eval_callback`: asked before each operation whether to be
            called after it, too. It may not raise, and what it does not let go on is left out.

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
        observer: Any = None,
    ) -> None:
        self._decoder = decoder
        self._exact = exact
        self._context = Context(
            model,
            decoder,
            threads=threads,
            exact=exact,
            device=device,
            pack=pack,
            observer=observer,
        )
        self._rows: Rows | None = None
        library = self._context.library
        self.info = EngineInfo(engine="gguf", library=library, device=device, threads=threads)

    def prime(self, beginnings: Sequence[Sequence[int]]) -> None:
        """Say what many rows begin with; it is computed with the first rows, whichever they are."""
        check_prime(self._rows)
        self._context.prime(beginnings)

    def start(self, rows: Sequence[Sequence[int]], *, room: int) -> "LlamaSession":
        """Open a session over a batch of token rows; the one before must be closed."""
        check_start(self._rows, len(rows), self.batch_rows, closed=self._context.closed)
        shape = self._decoder
        ledger = Rows(rows, room=room, vocabulary=shape.vocabulary, context=shape.context)
        if self.info.device == "cpu" and ledger.cells > self._context.cells:
            mean = -(-ledger.cells // len(rows))  # rows share the cache
            check_room(shape, len(rows), mean, cache_bytes=4 if self._exact else 2)
        with memory_for(ledger):
            self._context.make_room(len(rows), ledger.cells)
            ledger.cached = [self._context.begin(at, row) for at, row in enumerate(ledger.tokens)]
            session = LlamaSession(self._context, shape, ledger)
        self._rows = ledger  # not before: what fails until here leaves no session open
        return session

    def close(self) -> None:
        """Free the context and the weights."""
        self._context.close()


class LlamaSession:
    """A batch of rows in the engine's cache. See `t1_edge.engines.base.Session`."""

    def __init__(self, context: Context, decoder: Decoder, rows: Rows) -> None:
        self._context = context
        self._rows = rows
        self._fresh = True
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
        with self._caching():
            self._run_prefix()
            self._context.decode(self._pending("logits"), self._logits)
            found = self._logits.copy()
        rows.scored = [True] * len(rows)
        return found

    def peek(self, *tokens: int) -> Float32Array:
        """Hidden states of the last token, were all at each row's end, float32 [rows, hidden]."""
        rows = self._rows
        rows.check_peek(tokens)
        with self._caching():
            self._run_prefix()
            self._decode_peek(tokens)
            return self._hidden.copy()

    def close(self) -> None:
        """The next session empties the cache."""
        self._rows.open = False

    def __enter__(self) -> "LlamaSession":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _decode_peek(self, tokens: Sequence[int]) -> None:
        """Decode what is pending and the peeked tokens, whose last gives hidden states."""
        rows = self._rows
        *lead, last = tokens
        ends = [
            Entry(last, len(row) + len(lead), at, "hidden") for at, row in enumerate(rows.tokens)
        ]
        pending = self._pending("logits", lead)
        if len(pending) + len(ends) <= TOGETHER:
            self._context.decode([*pending, *ends], self._logits, self._hidden)
            for at, row in enumerate(rows.tokens):
                rows.scored[at] |= rows.cached[at] < len(row)
        else:
            self._context.decode(self._pending(None, lead))
            self._context.decode(ends, hidden=self._hidden)

    @contextmanager
    def _caching(self) -> Iterator[None]:
        """Have the rows' tokens in the cache, and none behind them; what fails changes nothing."""
        try:
            with memory_for(self._rows):
                yield
            self._fresh = False
            self._rows.keep()
        finally:
            for row, cached in enumerate(self._rows.cached):
                self._context.forget_from(row, cached)

    def _pending(self, output: Literal["logits"] | None, lead: Sequence[int] = ()) -> list[Entry]:
        """The tokens that are not cached yet; of each row's last one, what is wanted.

        What leads to a peeked token stands behind each row, and does not belong to it.
        """
        return [
            Entry(token, at, row, output if at == len(tokens) - 1 else None)
            for row, tokens in enumerate(self._rows.tokens)
            for at, token in enumerate((*tokens, *lead))
            if at >= self._rows.cached[row]
        ]

    def _run_prefix(self) -> None:
        """Cache what all rows of a new session begin with, once; each keeps a token of its own."""
        if not self._fresh:
            return
        rows, held = self._rows.tokens, self._rows.cached[0]
        shared = len(common_beginning([row[:-1] for row in rows]))
        alike = all(count == held for count in self._rows.cached)
        if len(rows) == 1 or shared <= held or not alike:
            return
        self._context.decode([Entry(rows[0][at], at, 0) for at in range(held, shared)])
        for row in range(1, len(rows)):
            self._context.share(0, row, held, shared)
        self._rows.cached = [shared] * len(rows)
