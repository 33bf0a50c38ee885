"""llama.cpp's model and context, through the low-level API of llama-cpp-python.

Rows share one cache (`kv_unified`). With embeddings on, llama.cpp computes logits for every token
of a batch; so they are switched on for a decode that wants hidden states, and off again.
"""

import ctypes
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from t1_edge.build import Decoder
from t1_edge.engines import llama_log
from t1_edge.engines.base import Float32Array
from t1_edge.engines.llama_amx import may_pack
from t1_edge.engines.llama_devices import device_array
from t1_edge.errors import EngineError

MOST_ROWS: Final = 64

_BATCH: Final = 2048  # tokens of one decode call
_MICRO_BATCH: Final = 512  # tokens that run through the layers together
_CELLS: Final = 1024  # a context is made for a multiple of these, so that it is seldom remade


class Entry(NamedTuple):
    """A token of a decode call; `output` if its logits or hidden state are wanted."""

    token: int
    position: int
    row: int
    output: bool


class Context:
    """A model's weights and one cache for all rows; freed when it is closed, or forgotten.

    Args:
        model: A build's model.gguf.
        decoder: The shape that the manifest gives.
        threads: CPU threads.
        exact: Keep the cache and attend in float32, at half the speed.
        device: "cpu", or a GPU's, which gets every block.
        pack: Pack weights anew for the processor's kernels; if None, where these run.

    Raises:
        EngineError: If llama.cpp refuses the file, or it is of another shape.
    """

    def __init__(
        self,
        model: Path,
        decoder: Decoder,
        *,
        threads: int,
        exact: bool,
        device: str = "cpu",
        pack: bool | None = None,
    ) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        self._threads = threads
        self._exact = exact
        self._context: Any = None
        self._batch: Any = None
        self._cells = 0
        llama_log.collect(llama_cpp)
        if pack is None:
            pack = device != "cpu" or may_pack(llama_cpp)
        self._packed = pack
        parameters = self._api.llama_model_default_params()
        parameters.use_extra_bufts = pack
        parameters.n_gpu_layers = 0 if device == "cpu" else -1
        if device == "cpu":
            # Mapped pages would stay beside the weights that are packed anew for the kernels.
            parameters.load_mode = self._api.LLAMA_LOAD_MODE_NONE
        devices = device_array(device)  # read while the model loads
        parameters.devices = ctypes.cast(devices, ctypes.c_void_p)
        self._model = self._api.llama_model_load_from_file(str(model).encode(), parameters)
        if not self._model:
            raise EngineError(f"llama.cpp cannot open {model}: {llama_log.last_words()}")
        self._held = ExitStack()
        self._held.callback(self._api.llama_model_free, self._model)
        self._held_cache = self._held.enter_context(ExitStack())
        # What is forgotten is freed, too; not at the end of the process, where a thread may decode.
        weakref.finalize(self, self._held.close).atexit = False
        self._check_shape(model, decoder)

    @property
    def library(self) -> str:
        """What runs, and its version."""
        plainly = "" if self._packed else ", weights not packed"
        return f"llama.cpp (llama-cpp-python {self._api.__version__}{plainly})"

    @property
    def cells(self) -> int:
        """Tokens that there is room for, all rows together."""
        return self._cells

    @property
    def closed(self) -> bool:
        """Whether the weights are freed."""
        return not self._model

    def make_room(self, cells: int) -> None:
        """Have an empty cache for so many tokens, all rows together.

        Raises:
            EngineError: If there is no memory for it.
        """
        if cells <= self._cells:
            self._api.llama_memory_clear(self._memory, False)
            return
        self._free_context()
        api = self._api
        parameters = api.llama_context_default_params()
        parameters.n_ctx = self._cells = -(-cells // _CELLS) * _CELLS
        parameters.n_batch, parameters.n_ubatch = _BATCH, _MICRO_BATCH
        parameters.n_seq_max = MOST_ROWS
        parameters.n_outputs_max = MOST_ROWS
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.kv_unified = True
        parameters.no_perf = True
        if self._exact:
            parameters.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
            parameters.type_k = parameters.type_v = api.GGML_TYPE_F32
        llama_log.forget()
        self._context = api.llama_init_from_model(self._model, parameters)
        if not self._context:
            self._cells = 0
            raise EngineError(
                f"llama.cpp cannot make a context of {cells} cells: {llama_log.last_words()}"
            )
        self._held_cache.callback(api.llama_free, self._context)
        self._batch = api.llama_batch_init(_BATCH, 0, 1)
        self._held_cache.callback(api.llama_batch_free, self._batch)

    def share_prefix(self, rows: int, tokens: int) -> None:
        """Let the first tokens in row 0's cache belong to every row: nothing is copied."""
        for row in range(1, rows):
            self._api.llama_memory_seq_cp(self._memory, 0, row, 0, tokens)

    def forget_from(self, row: int, position: int) -> None:
        """Drop a row's cache from a position on."""
        self._api.llama_memory_seq_rm(self._memory, row, position, -1)

    def logits(self, entries: Sequence[Entry], out: Float32Array) -> None:
        """Decode tokens, and read logits into the rows of `out` whose entry is an output.

        Args:
            entries: Tokens in the order of their positions.
            out: float32 [rows, vocabulary].

        Raises:
            EngineError: If llama.cpp fails, or the engine was closed.
        """
        self._decode(entries, self._api.llama_get_logits_ith, out)

    def hidden(self, entries: Sequence[Entry], out: Float32Array) -> None:
        """Decode one token a row with embeddings on, and read hidden states.

        Args:
            entries: One a row.
            out: float32 [rows, hidden].

        Raises:
            EngineError: If llama.cpp fails, or the engine was closed.
        """
        context = self._open_context()
        self._api.llama_set_embeddings(context, True)
        try:
            self._decode(entries, self._api.llama_get_embeddings_ith, out)
        finally:
            self._api.llama_set_embeddings(context, False)

    def close(self) -> None:
        """Free the cache and the weights."""
        self._free_context()
        self._held.close()
        self._model = None

    @property
    def _memory(self) -> Any:
        return self._api.llama_get_memory(self._open_context())

    def _open_context(self) -> Any:
        """The context; llama.cpp would crash on none."""
        if not self._context:
            raise EngineError("the engine was closed under its session")
        return self._context

    def _decode(
        self, entries: Sequence[Entry], read: Callable[[Any, int], Any], out: Float32Array
    ) -> None:
        context = self._open_context()
        llama_log.forget()
        for at in range(0, len(entries), _BATCH):
            part = entries[at : at + _BATCH]
            self._fill(part)
            status = self._api.llama_decode(context, self._batch)
            if status != 0:
                raise EngineError(
                    f"llama.cpp failed on {len(part)} tokens: {llama_log.last_words()}"
                )
            for index, entry in enumerate(part):
                if entry.output:
                    numbers = read(context, index)
                    out[entry.row] = np.ctypeslib.as_array(numbers, (out.shape[1],))

    def _fill(self, entries: Sequence[Entry]) -> None:
        batch = self._batch
        batch.n_tokens = len(entries)
        for index, entry in enumerate(entries):
            batch.token[index] = entry.token
            batch.pos[index] = entry.position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = entry.row
            batch.logits[index] = entry.output

    def _free_context(self) -> None:
        self._held_cache.close()
        self._context, self._batch, self._cells = None, None, 0

    def _check_shape(self, model: Path, decoder: Decoder) -> None:
        vocabulary = self._api.llama_vocab_n_tokens(self._api.llama_model_get_vocab(self._model))
        found = (vocabulary, self._api.llama_model_n_embd(self._model))
        expected = (decoder.vocabulary, decoder.hidden)
        if found != expected:
            self.close()
            raise EngineError(
                f"{model} has (vocabulary, hidden) {found}, the manifest says {expected}"
            )
