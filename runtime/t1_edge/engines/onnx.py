"""ONNX Runtime, driving a build's model.onnx. The graph is described in docs/build-format.md.

Rows are padded on the right, and the attention takes each row's true length; padding on the left
would silently give wrong vectors. Past and present are bound to one preallocated buffer, so a step
copies no cache. Padding and peeked tokens are written behind a row's end in that buffer, where the
next token overwrites them: peeking needs nothing undone.

On some processors (AVX2 without VNNI) one row is multiplied by other kernels than several, whose
sums are rounded otherwise, and activations of 8 bits make much of little. Where a probe at load
shows that, a single row steps beside a twin of padding, so that a query alone thinks what it thinks
in a batch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from t1_edge.build import Decoder
from t1_edge.engines.base import EngineInfo, Float32Array
from t1_edge.engines.rows import Rows, check_start
from t1_edge.errors import EngineError

if TYPE_CHECKING:
    import onnxruntime

_PAD: Final = 0  # any token will do: no real token attends to padding


class OnnxEngine:
    """A build's ONNX graph on the CPU. See `t1_edge.engines.base.Engine`.

    Args:
        model: A build's model.onnx; its weights.bin lies beside it.
        decoder: The shape that the manifest gives.
        threads: CPU threads.

    Attributes:
        twin: Whether a single row steps beside a row of padding; what a probe at load found.

    Raises:
        EngineError: If ONNX Runtime refuses the graph.
    """

    batch_tokens = 4096
    batch_rows = 64

    def __init__(self, model: Path, decoder: Decoder, *, threads: int) -> None:
        import onnxruntime

        self._decoder = decoder
        self._rows: Rows | None = None
        self._session: onnxruntime.InferenceSession | None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_mem_pattern = False  # it would keep a plan for every shape there ever was
        providers = ["CPUExecutionProvider"]
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=providers)
        except Exception as e:  # the bindings raise one class an error code, without a base
            raise EngineError(f"ONNX Runtime cannot open {model}: {e}") from e
        library = f"onnxruntime {onnxruntime.__version__}"
        self.info = EngineInfo(engine="onnx", library=library, device="cpu", threads=threads)
        self.twin = not np.array_equal(self._probe(twin=False), self._probe(twin=True))

    def start(self, rows: Sequence[Sequence[int]], *, room: int) -> "OnnxSession":
        """Open a session over a batch of token rows."""
        check_start(self._rows, len(rows), self.batch_rows, closed=self._session is None)
        shape = self._decoder
        self._rows = Rows(rows, room=room, vocabulary=shape.vocabulary, context=shape.context)
        return OnnxSession(self._session, shape, self._rows, twin=self.twin)

    def _probe(self, *, twin: bool) -> Float32Array:
        """A hidden state that comes out of one-token steps of a single row."""
        decoder = self._decoder
        row = Rows([[1, 2, 3]], room=3, vocabulary=decoder.vocabulary, context=decoder.context)
        with OnnxSession(self._session, decoder, row, twin=twin) as session:
            session.logits()
            session.append({0: 1})
            session.logits()
            return session.peek(2)

    def close(self) -> None:
        """Free the weights."""
        self._session = None


class OnnxSession:
    """A batch of rows and its KV cache. See `t1_edge.engines.base.Session`."""

    def __init__(
        self,
        session: "onnxruntime.InferenceSession",
        decoder: Decoder,
        rows: Rows,
        *,
        twin: bool,
    ) -> None:
        self._session = session
        self._rows = rows
        self._logits = np.zeros((len(rows), decoder.vocabulary), np.float32)
        self._twin = twin and len(rows) == 1
        # A full row that has nothing to do in a step runs padding behind its end.
        caches = _allocate(decoder, len(rows) + self._twin, rows.longest + 1)
        # The row alone is the first part of the same memory.
        self._caches = {n: _bindable(caches, n) for n in (len(rows), len(rows) + self._twin)}

    def append(self, tokens: Mapping[int, int]) -> None:
        """Note one more token for some rows."""
        self._rows.append(tokens)

    def logits(self) -> Float32Array:
        """Scores of the next token after each row, float32 [rows, vocabulary]."""
        self._rows.check_open()
        stale = [row for row, scored in enumerate(self._rows.scored) if not scored]
        if stale:
            starts = [self._scoring_start(row) for row in range(len(self._rows))]
            tails = zip(self._rows.tokens, starts, strict=True)
            fresh = self._run([row[start:] or [_PAD] for row, start in tails], starts, "logits")
            self._logits[stale] = fresh[stale]
            self._rows.scored = [True] * len(self._rows)
            self._rows.keep()
        return self._logits.copy()

    def peek(self, *tokens: int) -> Float32Array:
        """Hidden states of the last token, were all at each row's end, float32 [rows, hidden]."""
        self._rows.check_peek(tokens)
        starts = self._rows.cached
        tails = zip(self._rows.tokens, starts, strict=True)
        hidden = self._run([[*row[start:], *tokens] for row, start in tails], starts, "hidden")
        self._rows.keep()
        return hidden

    def close(self) -> None:
        """Free the KV cache."""
        self._rows.open = False
        self._caches.clear()

    def __enter__(self) -> "OnnxSession":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _scoring_start(self, row: int) -> int:
        """Where the tokens begin that must run for a row's logits.

        A row that has its logits runs padding behind its end; one whose last token was cached by a
        peek, which asks for no logits, runs that token again.
        """
        length = len(self._rows.tokens[row])
        return length if self._rows.scored[row] else min(self._rows.cached[row], length - 1)

    def _run(self, chunks: list[list[int]], starts: list[int], output: str) -> Float32Array:
        """Run each row's chunk behind the tokens it has in the cache; one output, one position."""
        from onnxruntime import OrtValue, RunOptions

        if self._twin and len(chunks[0]) == 1:
            chunks, starts = [*chunks, [_PAD]], [*starts, 0]
        counts = np.array([len(chunk) for chunk in chunks], np.int32)
        ids = np.full((len(chunks), counts.max()), _PAD, np.int64)
        for row, chunk in enumerate(chunks):
            ids[row, : len(chunk)] = chunk
        ends = np.array(starts, np.int32) + counts
        binding = self._session.io_binding()
        inputs = {
            "input_ids": ids,
            "query_seqlens": counts,
            "seqlens_k": ends - 1,
            "total_sequence_length": ends.max(),
            "last": counts[:, None].astype(np.int64) - 1,
        }
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(np.asarray(value)))
        for name, value in self._caches[len(chunks)].items():
            binding.bind_ortvalue_input(f"past_{name}", value)
            binding.bind_ortvalue_output(f"present_{name}", value)
        binding.bind_output(output)
        options = RunOptions()
        options.only_execute_path_to_fetches = True
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as e:  # the bindings raise one class an error code, without a base
            raise EngineError(f"ONNX Runtime failed on a chunk of {ids.shape}: {e}") from e
        return np.asarray(binding.get_outputs()[-1].numpy()[: len(self._rows)], np.float32)


def _allocate(decoder: Decoder, rows: int, capacity: int) -> dict[str, Float32Array]:
    """Zeroed keys and values, float32 [rows, kv_heads, capacity, head_dim] each, by suffix."""
    shape = (rows, decoder.kv_heads, capacity, decoder.head_dim)
    names = [f"{what}.{layer}" for layer in range(decoder.layers) for what in ("key", "value")]
    return {name: np.zeros(shape, np.float32) for name in names}


def _bindable(caches: Mapping[str, Float32Array], rows: int) -> dict[str, "onnxruntime.OrtValue"]:
    """The first rows of the caches, as values that share their memory."""
    from onnxruntime import OrtValue

    return {name: OrtValue.ortvalue_from_numpy(cache[:rows]) for name, cache in caches.items()}
