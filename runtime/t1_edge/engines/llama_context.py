"""llama.cpp's model and context, through the low-level API of llama-cpp-python.

Rows share one cache (`kv_unified`), and with them what they begin with: that has sequences of its
own, behind the rows', and stays. With embeddings on, llama.cpp computes logits for every token of a
batch; so they are switched on for a decode that wants hidden states, and off again.
"""

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from t1_edge.build import Decoder
from t1_edge.engines import llama_log
from t1_edge.engines.base import Float32Array
from t1_edge.engines.llama_amx import has_amx, may_pack
from t1_edge.engines.llama_devices import device_array
from t1_edge.engines.llama_mapping import LOADING, LlamaMapping, can_map
from t1_edge.errors import EngineError

MOST_ROWS: Final = 64

TOGETHER: Final = 16
"""So many tokens pass the head sooner than a second decode takes; a tile of AMX has 16 rows."""

_BATCH: Final = 2048  # tokens of one decode call
_MICRO_BATCH: Final = 512  # tokens that run through the layers together
_CELLS: Final = 512  # a context is made for a multiple of these, so that it is seldom remade
_MOST_BEGINNINGS: Final = 16
_SEQUENCES: Final = MOST_ROWS + _MOST_BEGINNINGS
"""As many outputs are reserved; where 16 does not divide them, documents take 1.2 times as long."""

_NO_MEMORY: Final = -2
"""What llama_decode returns where it cannot allocate (llama-context.cpp)."""

_NOTHING: Final = np.empty((0, 0), np.float32)


class Entry(NamedTuple):
    """A token of a decode call, and what of it is wanted, if anything is."""

    token: int
    position: int
    row: int
    output: Literal["logits", "hidden"] | None = None


class Context:
    """A model's weights and one cache for all rows; freed when it is closed, or forgotten.

    Args:
        model: A build's model.gguf.
        decoder: The shape that the manifest gives.
        threads: CPU threads.
        exact: Keep the cache and attend in float32, at half the speed.
        device: "cpu", or a GPU's, which gets every block.
        pack: Pack weights anew for the processor's kernels; if None, where these run.
        observer: A `ggml_backend_sched_eval_callback`: asked before each operation whether to be
            called after it, too. It may not raise, and what it does not let go on is left out.

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
        observer: Any = None,
    ) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        self._threads = threads
        self._exact = exact
        self._observer = observer
        self._context: Any = None
        self._batch: Any = None
        self._rows = self._cells = 0
        self._beginnings: Mapping[tuple[int, ...], int] = {}
        llama_log.collect(llama_cpp)
        if pack is None:
            pack = device != "cpu" or may_pack(llama_cpp)
        self._packed = pack
        parameters = self._api.llama_model_default_params()
        parameters.use_extra_bufts = pack
        parameters.n_gpu_layers = 0 if device == "cpu" else -1
        devices = device_array(device)  # read while the model loads
        parameters.devices = ctypes.cast(devices, ctypes.c_void_p)
        maps = pack and device == "cpu" and not exact and has_amx(llama_cpp) and can_map()
        if device == "cpu":
            # Mapped pages would stay beside the weights that are packed anew for the kernels.
            parameters.load_mode = self._api.LLAMA_LOAD_MODE_NONE
        with LOADING:
            mapping = LlamaMapping(llama_cpp, model, parameters) if maps else None
            self._model = self._api.llama_model_load_from_file(str(model).encode(), parameters)
            if not self._model:
                raise EngineError(f"llama.cpp cannot open {model}: {llama_log.last_words()}")
            if mapping:
                mapping.loaded()
        self._mapping = mapping
        self._held = ExitStack()
        self._held.callback(self._api.llama_model_free, self._model)
        if mapping:
            self._held.callback(mapping.close)
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
        """Tokens that there is room for, all rows together, beside what they begin with."""
        return self._cells

    @property
    def closed(self) -> bool:
        """Whether the weights are freed."""
        return not self._model

    def prime(self, beginnings: Sequence[Sequence[int]]) -> None:
        """Say what rows begin with; what was said before is forgotten, with the whole cache.

        So many as there are sequences for; of more, the longest.
        """
        self._free_context()
        longest_first = sorted(map(tuple, beginnings), key=len, reverse=True)
        kept = longest_first[:_MOST_BEGINNINGS]
        self._beginnings = {tokens: MOST_ROWS + at for at, tokens in enumerate(kept)}

    def make_room(self, rows: int, cells: int) -> None:
        """Have a cache that holds none of the rows before, but what rows begin with.

        All of that, and always first: numbers depend on where in the cache tokens lie.

        Args:
            rows: How many there will be.
            cells: Tokens of all rows together.

        Raises:
            MemoryError: If llama.cpp cannot make one.
            EngineError: If it fails otherwise.
        """
        if self._mapping:
            self._mapping.let_go()
        if cells <= self._cells:
            for row in range(self._rows):
                self.forget_from(row, 0)
            self._rows = rows
            return
        self._free_context()
        cells = -(-cells // _CELLS) * _CELLS
        api = self._api
        parameters = api.llama_context_default_params()
        parameters.n_ctx = cells + sum(map(len, self._beginnings))
        parameters.n_batch, parameters.n_ubatch = _BATCH, _MICRO_BATCH
        parameters.n_seq_max = parameters.n_outputs_max = _SEQUENCES
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.kv_unified = True
        parameters.no_perf = True
        if self._observer is not None:
            parameters.cb_eval = self._observer
        if self._exact:
            parameters.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
            parameters.type_k = parameters.type_v = api.GGML_TYPE_F32
        llama_log.forget()
        self._context = api.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise MemoryError(
                f"llama.cpp cannot make a context of {cells} cells: {llama_log.last_words()}"
            )
        self._held_cache.callback(api.llama_free, self._context)
        self._batch = api.llama_batch_init(_BATCH, 0, 1)
        self._held_cache.callback(api.llama_batch_free, self._batch)
        for beginning, sequence in self._beginnings.items():
            self.decode([Entry(token, at, sequence) for at, token in enumerate(beginning)])
        # Not before: one that an interruption left without beginnings has no cells, and is remade.
        self._rows, self._cells = rows, cells

    def begin(self, row: int, tokens: Sequence[int]) -> int:
        """Let a row have what it begins with, if it goes on behind that; how many tokens it is."""
        for beginning, sequence in self._beginnings.items():
            if len(beginning) < len(tokens) and tuple(tokens[: len(beginning)]) == beginning:
                self.share(sequence, row, 0, len(beginning))
                return len(beginning)
        return 0

    def share(self, source: int, row: int, start: int, stop: int) -> None:
        """Let tokens [start, stop) of one row's cache belong to another too: nothing is copied."""
        self._api.llama_memory_seq_cp(self._memory, source, row, start, stop)

    def forget_from(self, row: int, position: int) -> None:
        """Drop a row's cache from a position on; there may be none left."""
        if self._context:
            self._api.llama_memory_seq_rm(self._memory, row, position, -1)

    def decode(
        self,
        entries: Sequence[Entry],
        logits: Float32Array = _NOTHING,
        hidden: Float32Array = _NOTHING,
    ) -> None:
        """Decode tokens, and read what is wanted of them into their rows.

        Args:
            entries: Tokens, a row's in the order of their positions. Where a hidden state is
                wanted of one, llama.cpp computes logits for all: at most `TOGETHER` then, or one a
                row.
            logits: float32 [rows, vocabulary]; needed if an entry wants them.
            hidden: float32 [rows, hidden]; needed if an entry wants it.

        Raises:
            MemoryError: If llama.cpp lacks memory; the context is gone then, and made anew for the
                next rows.
            EngineError: If it fails otherwise, or there is no context.
        """
        context = self._open_context()
        embeds = any(entry.output == "hidden" for entry in entries)
        llama_log.forget()
        self._api.llama_set_embeddings(context, embeds)
        for at in range(0, len(entries), _BATCH):
            part = entries[at : at + _BATCH]
            self._fill(part)
            status = self._api.llama_decode(context, self._batch)
            if status != 0:
                said = f"llama.cpp failed on {len(part)} tokens: {llama_log.last_words()}"
                if status == _NO_MEMORY:
                    self._free_context()  # ggml would compute in the buffer that it does not have
                    raise MemoryError(said)
                raise EngineError(said)
            for index, entry in enumerate(part):
                if entry.output == "logits":
                    _read(self._api.llama_get_logits_ith(context, index), logits[entry.row])
                elif entry.output == "hidden":
                    _read(self._api.llama_get_embeddings_ith(context, index), hidden[entry.row])

    def close(self) -> None:
        """Free the cache and the weights."""
        self._model = None  # before it is freed: nobody may start on it meanwhile
        self._free_context()
        self._held.close()

    @property
    def _memory(self) -> Any:
        return self._api.llama_get_memory(self._open_context())

    def _open_context(self) -> Any:
        """The context; llama.cpp would crash on none."""
        if not self._context:
            raise EngineError("the session is over: its engine was closed, or had no memory")
        return self._context

    def _fill(self, entries: Sequence[Entry]) -> None:
        batch = self._batch
        batch.n_tokens = len(entries)
        for index, entry in enumerate(entries):
            batch.token[index] = entry.token
            batch.pos[index] = entry.position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = entry.row
            batch.logits[index] = entry.output is not None

    def _free_context(self) -> None:
        self._held_cache.close()
        self._context, self._batch, self._rows, self._cells = None, None, 0, 0

    def _check_shape(self, model: Path, decoder: Decoder) -> None:
        vocabulary = self._api.llama_vocab_n_tokens(self._api.llama_model_get_vocab(self._model))
        hidden = self._api.llama_model_n_embd(self._model)
        rows = (decoder.vocabulary, decoder.padded_vocabulary)
        if vocabulary not in rows or hidden != decoder.hidden:
            self.close()
            raise EngineError(
                f"{model} has (vocabulary, hidden) {(vocabulary, hidden)}, the manifest says "
                f"{(decoder.vocabulary, decoder.hidden)}"
            )


def _read(numbers: Any, out: Float32Array) -> None:
    """Copy the first of llama.cpp's float32 numbers."""
    out[:] = np.ctypeslib.as_array(numbers, out.shape)
