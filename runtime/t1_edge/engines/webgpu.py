"""ONNX Runtime's plugin for WebGPU, driving a build's graph for the CPU a row at a time.

The plugin takes every node of that graph, and does as if there were no `query_seqlens`: of several
rows it would get the lengths wrong, or refuse. A row by itself, without padding, needs none. From
32 tokens on it attends by another kernel, whose vectors were others where it was run (0.4.0, see
docs/devices.md); so rows are read in chunks that stay below.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np

from t1_edge.build import Decoder
from t1_edge.engines.base import Float32Array
from t1_edge.engines.onnx import OnnxEngine, OnnxSession
from t1_edge.engines.places import PLACES, Place
from t1_edge.engines.room import memory_for
from t1_edge.engines.rows import Rows, check_prime, check_start
from t1_edge.engines.webgpu_plugin import PACKAGE
from t1_edge.errors import EngineError

_CHUNK: Final = 16
"""Tokens that are read together; as many may be peeked at behind them, less one."""


class WebGpuEngine:
    """A build's ONNX graph on WebGPU. See `t1_edge.engines.base.Engine`.

    Args:
        directory: Where the graph is, beside its weights.bin.
        decoder: The shape that the manifest gives.
        threads: CPU threads, for what ONNX Runtime does itself.
        place: Where it runs.

    Raises:
        DeviceError: If ONNX Runtime would run a part of the graph elsewhere.
        EngineError: If ONNX Runtime refuses the graph.
    """

    batch_tokens = 512
    batch_rows = 64

    def __init__(
        self, directory: Path, decoder: Decoder, *, threads: int, place: Place = PLACES["webgpu"]
    ) -> None:
        self._engine = OnnxEngine(directory, decoder, threads=threads, place=place)
        self._decoder = decoder
        self._rows: Rows | None = None
        plugin = f", {PACKAGE} {version(PACKAGE)}" if place == PLACES["webgpu"] else ""
        self.info = replace(self._engine.info, library=f"{self._engine.info.library}{plugin}")

    def prime(self, beginnings: Sequence[Sequence[int]]) -> None:
        """Nothing is kept: every row is read whole."""
        check_prime(self._rows)

    def start(self, rows: Sequence[Sequence[int]], *, room: int) -> "WebGpuSession":
        """Open a session over a batch of token rows; the one before must be closed."""
        check_start(self._rows, len(rows), self.batch_rows, closed=self._engine.closed)
        shape = self._decoder
        fresh = Rows(rows, room=room, vocabulary=shape.vocabulary, context=shape.context)
        with memory_for(fresh):
            alone = [self._alone(row, room) for row in fresh.tokens]
        self._rows = fresh  # not before: what fails until here leaves no session open
        return WebGpuSession(fresh, alone)

    def _alone(self, row: Sequence[int], room: int) -> OnnxSession:
        """A session over a row's first token, with room for the rest."""
        shape = self._decoder
        begun = Rows(
            [row[:1]],
            room=len(row) - 1 + room,
            vocabulary=shape.vocabulary,
            context=shape.context,
        )
        return self._engine.over(begun)

    def close(self) -> None:
        """Free the weights."""
        self._engine.close()


class WebGpuSession:
    """A batch of rows, each in a session of its own. See `t1_edge.engines.base.Session`."""

    def __init__(self, rows: Rows, alone: Sequence[OnnxSession]) -> None:
        self._rows = rows
        self._alone = alone
        self._given = [1] * len(alone)
        self._held = ExitStack()
        for session in alone:
            self._held.callback(session.close)

    def append(self, tokens: Mapping[int, int]) -> None:
        """Note one more token for some rows."""
        self._rows.append(tokens)

    def logits(self) -> Float32Array:
        """Scores of the next token after each row, float32 [rows, vocabulary]."""
        self._rows.check_open()
        self._give()
        return np.concatenate([session.logits() for session in self._alone])

    def peek(self, *tokens: int) -> Float32Array:
        """Hidden states of the last token, were all at each row's end, float32 [rows, hidden].

        Raises:
            EngineError: Also if there are more tokens than a chunk may have.
        """
        self._rows.check_peek(tokens)
        if len(tokens) >= _CHUNK:
            raise EngineError(
                f"{len(tokens)} tokens close a thought; WebGPU is driven with {_CHUNK - 1} at most"
            )
        self._give()
        return np.concatenate([session.peek(*tokens) for session in self._alone])

    def close(self) -> None:
        """Free the caches."""
        self._rows.open = False
        self._held.close()

    def __enter__(self) -> "WebGpuSession":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _give(self) -> None:
        """Pass the tokens on that were noted, and run them but for a chunk at each row's end."""
        for row, session in enumerate(self._alone):
            tokens = self._rows.tokens[row]
            for at in range(self._given[row], len(tokens)):
                if at % _CHUNK == 0:
                    session.logits()
                session.append({0: tokens[at]})
                self._given[row] = at + 1
