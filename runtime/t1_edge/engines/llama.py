"""llama.cpp, driving a build's model.gguf through the low-level API of llama-cpp-python.

With embeddings on, llama.cpp computes logits for every token of a batch. So text is read and
thoughts are written with embeddings off; they are switched on for one decode of the peeked token
alone, and off again. The rows share one cache (`kv_unified`), in which the tokens that all of them
begin with are computed once and belong to every row.

Token ids come from the build's own tokenizer; llama.cpp's is never asked.
"""

import ctypes
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

import numpy as np

from t1_edge.build import Decoder
from t1_edge.engines.base import EngineInfo, Float32Array
from t1_edge.engines.rows import Rows
from t1_edge.errors import EngineError, MissingExtraError

_MOST_ROWS: Final = 64
_BATCH: Final = 2048  # tokens of one decode call
_MICRO_BATCH: Final = 512  # tokens that run through the layers together
_CELLS: Final = 1024  # a context is made for a multiple of these, so that it is seldom remade
_GGML_LOG_LEVEL_ERROR: Final = 3
_LOG: Final[deque[str]] = deque(maxlen=8)
"""llama.cpp's last errors: it says why a call failed here, and nowhere else."""


class _Entry(NamedTuple):
    """A token of a decode call; `output` if its logits or hidden state are wanted."""

    token: int
    position: int
    row: int
    output: bool


class LlamaEngine:
    """A build's GGUF on the CPU. See `t1_edge.engines.base.Engine`.

    Args:
        model: A build's model.gguf.
        decoder: The shape that the manifest gives.
        threads: CPU threads.
        exact: Keep the cache and attend in float32, at half the speed: what float builds are for.
            Otherwise both are float16, as llama.cpp has them by itself.

    Raises:
        MissingExtraError: If llama-cpp-python is not installed.
        EngineError: If llama.cpp refuses the file, or it is of another shape.
    """

    batch_tokens = 1024  # every row's attention scans the whole shared cache

    def __init__(self, model: Path, decoder: Decoder, *, threads: int, exact: bool = False) -> None:
        self._api = _load_library()
        self.decoder = decoder
        self._threads = threads
        self._exact = exact
        self._context: Any = None
        self._cells = 0
        self._batch: Any = None
        self._in_use = False
        parameters = self._api.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = self._api.llama_model_load_from_file(str(model).encode(), parameters)
        if not self._model:
            raise EngineError(f"llama.cpp cannot open {model}: {_last_words()}")
        self._check_shape(model)
        library = f"llama.cpp (llama-cpp-python {self._api.__version__})"
        self.info = EngineInfo(engine="gguf", library=library, device="cpu", threads=threads)

    def start(self, rows: Sequence[Sequence[int]], *, room: int) -> "LlamaSession":
        """Open a session over a batch of token rows; the one before must be closed."""
        if not self._model:
            raise EngineError("the engine is closed")
        decoder = self.decoder
        ledger = Rows(rows, room=room, vocabulary=decoder.vocabulary, context=decoder.context)
        if len(rows) > _MOST_ROWS:
            raise EngineError(f"{len(rows)} rows at once; llama.cpp is given at most {_MOST_ROWS}")
        if self._in_use:
            raise EngineError("a session is still open; close it before starting another")
        self._make_room(ledger.cells)
        self._in_use = True
        return LlamaSession(self, ledger)

    def close(self) -> None:
        """Free the context and the weights."""
        self._free_context()
        if self._model:
            self._api.llama_model_free(self._model)
            self._model = None

    def release(self) -> None:
        """Empty the cache for the next session; a session calls this when it is closed."""
        if self._context:
            self._api.llama_memory_clear(self._memory, False)
        self._in_use = False

    def share_prefix(self, rows: int, tokens: int) -> None:
        """Let the first tokens in row 0's cache belong to every row: nothing is copied."""
        for row in range(1, rows):
            self._api.llama_memory_seq_cp(self._memory, 0, row, 0, tokens)

    def forget_from(self, row: int, position: int) -> None:
        """Drop a row's cache from a position on."""
        self._api.llama_memory_seq_rm(self._memory, row, position, -1)

    def logits(self, entries: Sequence[_Entry], out: Float32Array) -> None:
        """Decode tokens, and read logits into the rows of `out` whose entry is an output."""
        self._decode(entries, self._api.llama_get_logits_ith, out)

    def hidden(self, entries: Sequence[_Entry], out: Float32Array) -> None:
        """Decode one token a row with embeddings on, and read hidden states into `out`."""
        context = self._open_context()
        self._api.llama_set_embeddings(context, True)
        try:
            self._decode(entries, self._api.llama_get_embeddings_ith, out)
        finally:
            self._api.llama_set_embeddings(context, False)

    @property
    def _memory(self) -> Any:
        return self._api.llama_get_memory(self._open_context())

    def _open_context(self) -> Any:
        """The context; llama.cpp would crash on none."""
        if not self._context:
            raise EngineError("the engine was closed under its session")
        return self._context

    def _decode(
        self, entries: Sequence[_Entry], read: Callable[[Any, int], Any], out: Float32Array
    ) -> None:
        context = self._open_context()
        for at in range(0, len(entries), _BATCH):
            part = entries[at : at + _BATCH]
            self._fill(part)
            status = self._api.llama_decode(context, self._batch)
            if status != 0:
                raise EngineError(f"llama.cpp failed on {len(part)} tokens: {_last_words()}")
            for index, entry in enumerate(part):
                if entry.output:
                    numbers = read(context, index)
                    out[entry.row] = np.ctypeslib.as_array(numbers, (out.shape[1],))

    def _fill(self, entries: Sequence[_Entry]) -> None:
        batch = self._batch
        batch.n_tokens = len(entries)
        for index, entry in enumerate(entries):
            batch.token[index] = entry.token
            batch.pos[index] = entry.position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = entry.row
            batch.logits[index] = entry.output

    def _make_room(self, cells: int) -> None:
        """Have a context for so many tokens, all rows together."""
        if cells <= self._cells:
            return
        self._free_context()
        api = self._api
        parameters = api.llama_context_default_params()
        parameters.n_ctx = self._cells = -(-cells // _CELLS) * _CELLS
        parameters.n_batch, parameters.n_ubatch = _BATCH, _MICRO_BATCH
        parameters.n_seq_max = _MOST_ROWS
        parameters.n_outputs_max = _MOST_ROWS
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.kv_unified = True
        parameters.no_perf = True
        if self._exact:
            parameters.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
            parameters.type_k = parameters.type_v = api.GGML_TYPE_F32
        self._context = api.llama_init_from_model(self._model, parameters)
        if not self._context:
            self._cells = 0
            raise EngineError(f"llama.cpp cannot make a context of {cells} cells: {_last_words()}")
        self._batch = api.llama_batch_init(_BATCH, 0, 1)

    def _free_context(self) -> None:
        if self._context:
            self._api.llama_free(self._context)
            self._api.llama_batch_free(self._batch)
        self._context, self._batch, self._cells = None, None, 0

    def _check_shape(self, model: Path) -> None:
        vocabulary = self._api.llama_vocab_n_tokens(self._api.llama_model_get_vocab(self._model))
        found = (vocabulary, self._api.llama_model_n_embd(self._model))
        expected = (self.decoder.vocabulary, self.decoder.hidden)
        if found != expected:
            self.close()
            raise EngineError(
                f"{model} has (vocabulary, hidden) {found}, the manifest says {expected}"
            )


class LlamaSession:
    """A batch of rows in the engine's cache. See `t1_edge.engines.base.Session`."""

    def __init__(self, engine: LlamaEngine, rows: Rows) -> None:
        self._engine = engine
        self._rows = rows
        self._logits = np.zeros((len(rows), engine.decoder.vocabulary), np.float32)
        self._hidden = np.zeros((len(rows), engine.decoder.hidden), np.float32)
        self._open = True

    def append(self, tokens: Mapping[int, int]) -> None:
        """Note one more token for some rows."""
        self._rows.append(tokens)

    def logits(self) -> Float32Array:
        """Scores of the next token after each row, float32 [rows, vocabulary]."""
        rows = self._rows
        for row, tokens in enumerate(rows.tokens):
            # A peek caches tokens without their logits: the last one has to run again.
            if not rows.scored[row] and rows.cached[row] == len(tokens):
                rows.cached[row] -= 1
                self._engine.forget_from(row, rows.cached[row])
        self._run_pending(scored=True)
        rows.scored = [True] * len(rows)
        return self._logits.copy()

    def peek(self, token: int) -> Float32Array:
        """Hidden states that `token` would have at each row's end, float32 [rows, hidden]."""
        self._run_pending(scored=False)
        ends = [_Entry(token, len(row), at, True) for at, row in enumerate(self._rows.tokens)]
        self._engine.hidden(ends, self._hidden)
        for entry in ends:
            self._engine.forget_from(entry.row, entry.position)
        return self._hidden.copy()

    def close(self) -> None:
        """Free the rows' cells."""
        if self._open:
            self._open = False
            self._engine.release()

    def __enter__(self) -> "LlamaSession":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run_pending(self, *, scored: bool) -> None:
        """Cache the tokens that are not cached yet; with the last ones' logits if `scored`."""
        if not any(self._rows.cached):
            self._run_prefix()
        entries = [
            _Entry(tokens[at], at, row, scored and at == len(tokens) - 1)
            for row, tokens in enumerate(self._rows.tokens)
            for at in range(self._rows.cached[row], len(tokens))
        ]
        self._engine.logits(entries, self._logits)
        self._rows.keep()

    def _run_prefix(self) -> None:
        """Cache what all rows begin with, once; each row keeps a token of its own."""
        rows = self._rows.tokens
        columns = zip(*(row[:-1] for row in rows), strict=False)
        shared = len(list(takewhile(lambda column: len(set(column)) == 1, columns)))
        if len(rows) == 1 or shared == 0:
            return
        entries = [_Entry(rows[0][at], at, 0, False) for at in range(shared)]
        self._engine.logits(entries, self._logits)
        self._engine.share_prefix(len(rows), shared)
        self._rows.cached = [shared] * len(rows)


def _load_library() -> Any:
    try:
        import llama_cpp
    except ImportError as e:
        raise MissingExtraError("llama-cpp-python", "gguf") from e
    llama_cpp.llama_log_set(_collector(llama_cpp), ctypes.c_void_p(0))
    return llama_cpp


_COLLECTORS: Final[list[Any]] = []
"""Keeps the callback alive for as long as llama.cpp may call it: for ever."""


def _collector(api: ModuleType) -> Any:
    """llama.cpp's log callback, which collects what it has to say instead of printing it."""

    def collect(level: int, text: bytes, data: object) -> None:
        if level == _GGML_LOG_LEVEL_ERROR:
            _LOG.append(text.decode("utf-8", errors="replace").strip())

    if not _COLLECTORS:
        _COLLECTORS.append(api.llama_log_callback(collect))
    return _COLLECTORS[0]


def _last_words() -> str:
    return " | ".join(_LOG) or "it gave no reason"
