"""The float reference as an engine: what thinks and peeks with a build's engine does with it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np

from t1_edge.build import Decoder
from t1_edge.engines.base import EngineInfo, Float32Array
from t1_edge.engines.rows import Rows, check_prime, check_start
from t1_edge.machine import available_threads
from t1_edge_export.bars import Progress, silent
from t1_edge_export.checkpoint import SLAB_ROWS, Checkpoint
from t1_edge_export.decoder import layer_tensors, linear_layers, weight_count
from t1_edge_export.reference import Reference

_KEPT: Final = 2**30
"""Bytes of float32 that are kept: a small model is dequantized once, a large one in every pass."""


def reference_memory(decoder: Decoder) -> int:
    """Bytes that the reference has resident: of a small model all weights, else a block.

    As much again is for the tokens' states.
    """
    block = 4 * sum(spec.size for spec in layer_tensors(decoder, 0))
    if is_kept(decoder):
        return 4 * weight_count(decoder)
    return 2 * block + 4 * SLAB_ROWS * decoder.hidden


def is_kept(decoder: Decoder) -> bool:
    """Whether the reference keeps a decoder's weights, and reads them once."""
    return 4 * weight_count(decoder) <= _KEPT


class ReferenceEngine:
    """See `t1_edge.engines.base.Engine`. A pass reads the checkpoint, unless that is small.

    Args:
        checkpoint: The float weights.
        keep: Keep them in memory, and read them once; None if they are small.
    """

    batch_tokens = 1 << 20  # the fewer passes, the better
    batch_rows = 256

    def __init__(self, checkpoint: Checkpoint, *, keep: bool | None = None) -> None:
        self._decoder = checkpoint.decoder
        self._sizes = {spec.name: spec.size for spec in linear_layers(self._decoder)}
        self._progress: Progress = silent
        self._reference = Reference(
            checkpoint,
            keep=is_kept(self._decoder) if keep is None else keep,
            observe=lambda name, inputs: self._progress(self._sizes[name]),
        )
        library, threads = f"numpy {np.__version__}", available_threads()
        self.info = EngineInfo(engine="float", library=library, device="cpu", threads=threads)
        self._rows: Rows | None = None
        self._closed = False

    @contextmanager
    def watched(self, progress: Progress) -> Iterator[None]:
        """Tell of the linear layers that tokens pass through, while the context is open."""
        before, self._progress = self._progress, progress
        try:
            yield
        finally:
            self._progress = before

    def prime(self, beginnings: Sequence[Sequence[int]]) -> None:
        """Every row is computed whole."""
        check_prime(self._rows)

    def start(self, rows: Sequence[Sequence[int]], *, room: int) -> "ReferenceSession":
        """Open a session over a batch of token rows."""
        check_start(self._rows, len(rows), self.batch_rows, closed=self._closed)
        shape = self._decoder
        self._rows = Rows(rows, room=room, vocabulary=shape.vocabulary, context=shape.context)
        return ReferenceSession(self._reference, self._rows, shape.vocabulary)

    def close(self) -> None:
        """Nothing is started any more."""
        self._closed = True


class ReferenceSession:
    """See `t1_edge.engines.base.Session`."""

    def __init__(self, reference: Reference, rows: Rows, vocabulary: int) -> None:
        self._reference = reference
        self._rows = rows
        self._caches = reference.caches(len(rows))
        self._logits = np.zeros((len(rows), vocabulary), np.float32)

    def append(self, tokens: Mapping[int, int]) -> None:
        """Note one more token for some rows."""
        self._rows.append(tokens)

    def logits(self) -> Float32Array:
        """Scores of the next token after each row, float32 [rows, vocabulary]."""
        rows = self._rows
        rows.check_open()
        stale = [row for row, scored in enumerate(rows.scored) if not scored]
        if stale:
            chunks = [self._unscored(row) for row in stale]
            hidden = self._reference.forward(chunks, [self._caches[row] for row in stale])
            self._logits[stale] = self._reference.logits(hidden)
            rows.scored = [True] * len(rows)
            rows.keep()
        return self._logits.copy()

    def peek(self, *tokens: int) -> Float32Array:
        """Hidden states of the last token, were all at each row's end, float32 [rows, hidden]."""
        rows = self._rows
        rows.check_peek(tokens)
        tails = zip(rows.tokens, rows.cached, strict=True)
        hidden = self._reference.forward([[*row[at:], *tokens] for row, at in tails], self._caches)
        for row, cache in zip(rows.tokens, self._caches, strict=True):
            cache.cut(len(row))
        rows.keep()
        return hidden

    def close(self) -> None:
        """Free the KV cache."""
        self._rows.open = False
        self._caches.clear()

    def __enter__(self) -> "ReferenceSession":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _unscored(self, row: int) -> list[int]:
        """The tokens to run for a row's logits: the last again if a peek has cached it."""
        tokens = self._rows.tokens[row]
        at = min(self._rows.cached[row], len(tokens) - 1)
        self._caches[row].cut(at)
        return tokens[at:]
