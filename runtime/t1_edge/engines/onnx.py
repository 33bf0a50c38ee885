"""ONNX Runtime, driving a build's graph for a device. Graphs are described in docs/build-format.md.

Rows are padded on the right, and the attention takes each row's true length; padding on the left
would silently give wrong vectors. Past and present are bound to one preallocated buffer, so a step
copies no cache. Padding and peeked tokens are written behind a row's end in that buffer, where the
next token overwrites them: peeking needs nothing undone. What many rows begin with is computed once
for the engine, and put at their beginnings.

On some processors (AVX2 without VNNI) one row is multiplied by other kernels than several, whose
sums are rounded otherwise, and activations of 8 bits make much of little. Where a probe shows that,
a single row steps beside a twin of padding, so that a query alone thinks what it thinks in a batch.

What ONNX Runtime cannot run on a device it gives to the CPU, and says nothing. So it is asked which
node went where, and a node that went elsewhere is an error.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from t1_edge.build import Decoder
from t1_edge.cache import remembered
from t1_edge.engines.base import EngineInfo, Float32Array
from t1_edge.engines.cuda_libraries import preload
from t1_edge.engines.places import PLACES, READER, Place
from t1_edge.engines.room import check_room, memory_for
from t1_edge.engines.rows import Rows, check_prime, check_start
from t1_edge.engines.webgpu_plugin import plugin_devices
from t1_edge.errors import DeviceError, EngineError
from t1_edge.machine import has_vnni, kernels

if TYPE_CHECKING:
    import onnxruntime

Caches = dict[str, NDArray[np.floating[Any]]]
"""Keys and values of each layer, [rows, kv_heads, tokens, head_dim], or of one row, by suffix."""

_STATES_A_THREAD: Final = 1024 * 576
_MOST_TOKENS: Final = 4096
_PAD: Final = 0  # any token will do: no real token attends to padding

_NO_MEMORY: Final = (
    "failed to allocate memory",
    "bad_alloc",
    "bad allocation",
    "out of memory",
    "status_alloc_failed",
)
"""What ONNX Runtime's arena, C++, and CUDA's libraries say where an allocation fails."""


class OnnxEngine:
    """A build's ONNX graph for a device. See `t1_edge.engines.base.Engine`.

    Args:
        directory: Where the graph is, beside its weights.bin.
        decoder: The shape that the manifest gives.
        threads: CPU threads.
        place: Where it runs.
        profile: How the name begins of a file that ONNX Runtime writes when the engine is closed:
            what each node of each pass took. None for no file.

    Attributes:
        batch_tokens: About a thousand of nano's for each thread, of wider states fewer: more leave
            a core's caches between layers, and take memory.
        twin: Whether a single row steps beside a row of padding; what a probe found here.

    Raises:
        DeviceError: If ONNX Runtime would run a part of the graph elsewhere.
        EngineError: If ONNX Runtime refuses the graph.
    """

    batch_rows = 64

    def __init__(
        self,
        directory: Path,
        decoder: Decoder,
        *,
        threads: int,
        place: Place = PLACES["cpu"],
        profile: Path | None = None,
    ) -> None:
        import onnxruntime

        self._decoder = decoder
        self._place = place
        self.batch_tokens = min(_MOST_TOKENS, _STATES_A_THREAD * threads // decoder.hidden)
        self._rows: Rows | None = None
        self._beginnings: dict[tuple[int, ...], Caches | None] = {}
        self._session: onnxruntime.InferenceSession | None
        self._session = _open(directory / place.graph, threads, place, profile)
        self.info = EngineInfo(
            engine="onnx",
            library=f"onnxruntime {onnxruntime.__version__}",
            device=place.device,
            threads=threads,
            graph=place.reads,
        )
        self.twin = place == PLACES["cpu"] and self._needs_twin(directory / place.graph)

    def prime(self, beginnings: Sequence[Sequence[int]]) -> None:
        """Say what many rows begin with; it is computed when the first such row comes."""
        check_prime(self._rows)
        longest_first = sorted(map(tuple, beginnings), key=len, reverse=True)
        self._beginnings = dict.fromkeys(longest_first)

    def start(self, rows: Sequence[Sequence[int]], *, room: int) -> "OnnxSession":
        """Open a session over a batch of token rows."""
        check_start(self._rows, len(rows), self.batch_rows, closed=self.closed)
        shape, item = self._decoder, self._place.cache.itemsize
        fresh = Rows(rows, room=room, vocabulary=shape.vocabulary, context=shape.context)
        if self._place.memory == "cpu":
            documents = self._place.reads == "documents"
            check_room(shape, len(rows), fresh.longest, cache_bytes=item, documents=documents)
        with memory_for(fresh):
            session = self.over(fresh)
        self._rows = fresh  # not before: what fails until here leaves no session open
        return session

    def over(self, rows: Rows) -> "OnnxSession":
        """Open a session over rows that the caller has checked; others may be open beside it."""
        begun = [self._begun(row) for row in rows.tokens]
        return OnnxSession(
            self._session, self._decoder, rows, self._place, twin=self.twin, begun=begun
        )

    @property
    def closed(self) -> bool:
        """Whether the weights are freed."""
        return self._session is None

    def _begun(self, row: Sequence[int]) -> "Caches | None":
        """Keys and values of what a row begins with, if that is known and the row goes on."""
        for tokens, known in self._beginnings.items():
            if len(tokens) < len(row) and tuple(row[: len(tokens)]) == tokens:
                if known is None:
                    known = self._beginnings[tokens] = self._compute(tokens)
                return known
        return None

    def _compute(self, tokens: Sequence[int]) -> "Caches":
        shape = self._decoder
        row = Rows([tokens], room=1, vocabulary=shape.vocabulary, context=shape.context)
        with OnnxSession(self._session, shape, row, self._place, twin=False) as session:
            session.peek(tokens[-1])
            return session.cached(len(tokens))

    def _needs_twin(self, graph: Path) -> bool:
        """Whether a single row should step beside a twin, as a probe found once for a machine."""
        made = [str(graph.resolve()), graph.stat().st_mtime_ns]
        here = [self.info.library, kernels(), self.info.threads]
        return remembered("twins", [made, here], bool, self._differs_alone)

    def _differs_alone(self) -> bool:
        """Whether a row's numbers are others beside a twin."""
        return not np.array_equal(self._probe(twin=False), self._probe(twin=True))

    def _probe(self, *, twin: bool) -> Float32Array:
        """A hidden state that comes out of one-token steps of a single row."""
        decoder = self._decoder
        row = Rows([[1, 2, 3]], room=3, vocabulary=decoder.vocabulary, context=decoder.context)
        with OnnxSession(self._session, decoder, row, self._place, twin=twin) as session:
            session.logits()
            session.append({0: 1})
            session.logits()
            return session.peek(2)

    def close(self) -> None:
        """Free the weights."""
        self._session = None
        self._beginnings.clear()


class OnnxSession:
    """A batch of rows and its KV cache. See `t1_edge.engines.base.Session`."""

    def __init__(
        self,
        session: "onnxruntime.InferenceSession | None",
        decoder: Decoder,
        rows: Rows,
        place: Place,
        *,
        twin: bool,
        begun: Sequence["Caches | None"] = (),
    ) -> None:
        self._session = session
        self._rows = rows
        self._logits = np.zeros((len(rows), decoder.vocabulary), np.float32)
        self._place = place
        self._twin = twin and len(rows) == 1
        # A full row that has nothing to do in a step runs padding behind its end.
        caches = _allocate(decoder, len(rows) + self._twin, rows.longest + 1, place.cache)
        for row, beginning in enumerate(begun):
            if beginning is not None:
                rows.cached[row] = _fill(caches, row, beginning)
        # The row alone is the first part of the same memory.
        counts = (len(rows), len(rows) + self._twin)
        self._caches = {n: _bindable(caches, n, place.memory) for n in counts}

    def append(self, tokens: Mapping[int, int]) -> None:
        """Note one more token for some rows."""
        self._rows.append(tokens)

    def logits(self) -> Float32Array:
        """Scores of the next token after each row, float32 [rows, vocabulary]."""
        self._rows.check_open()
        with memory_for(self._rows):
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
        with memory_for(self._rows):
            hidden = self._run([[*row[start:], *tokens] for row, start in tails], starts, "hidden")
        self._rows.keep()
        return hidden

    def cached(self, tokens: int) -> "Caches":
        """Keys and values of the first tokens of the first row."""
        caches = self._caches[len(self._rows)]
        return {name: value.numpy()[0, :, :tokens].copy() for name, value in caches.items()}

    def close(self) -> None:
        """Free the KV cache."""
        self._rows.open = False
        self._caches.clear()
        self._session = None  # the weights end with the engine, whoever keeps this

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
        from onnxruntime import OrtValue

        if self._twin and len(chunks[0]) == 1:
            chunks, starts = [*chunks, [_PAD]], [*starts, 0]
        counts = np.array([len(chunk) for chunk in chunks], np.int32)
        ids = np.full((len(chunks), counts.max()), _PAD, np.int64)
        for row, chunk in enumerate(chunks):
            ids[row, : len(chunk)] = chunk
        ends = np.array(starts, np.int32) + counts
        assert self._session is not None  # as long as the rows are open
        binding = self._session.io_binding()
        inputs = {
            "input_ids": ids,
            "query_seqlens": counts,
            "seqlens_k": ends - 1,
            "total_sequence_length": ends.max(),
            "last": counts[:, None].astype(np.int64) - 1,
        }
        if self._place.reads == "everything":
            # All rows or none: one alone would be multiplied by other kernels than several.
            scored = len(chunks) if output == "logits" or not self._place.skips else 0
            inputs["scored"] = np.arange(scored)[:, None]
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(np.asarray(value)))
        for name, value in self._caches[len(chunks)].items():
            binding.bind_ortvalue_input(f"past_{name}", value)
            binding.bind_ortvalue_output(f"present_{name}", value)
        binding.bind_output(output)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as e:  # the bindings raise one class an error code, without a base
            raise _failure(f"ONNX Runtime failed on a chunk of {ids.shape}", e) from e
        return np.asarray(binding.get_outputs()[-1].numpy()[: len(self._rows)], np.float32)


def _fill(caches: Caches, row: int, beginning: Caches) -> int:
    """Put keys and values at the beginning of a row; the number of its tokens."""
    for name, values in beginning.items():
        caches[name][row, :, : values.shape[1]] = values
    return int(values.shape[1])


def _open(
    graph: Path, threads: int, place: Place, profile: Path | None = None
) -> "onnxruntime.InferenceSession":
    """A session all of whose nodes run where they should."""
    import onnxruntime

    if place.memory == "cuda":
        preload()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # it would keep a plan for every shape there ever was
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if place == READER and not has_vnni():
        # Pairs of products would be summed up in 16 bits, and cut there. Has no effect on ARM.
        options.add_session_config_entry("session.x64quantprecision", "1")
    providers: list[str] | None = [place.provider]
    try:
        if place.memory == "webgpu":
            options.add_provider_for_devices(plugin_devices()[:1], {})  # it takes no more
            providers = None
        session = onnxruntime.InferenceSession(
            graph, options, providers=providers, enable_fallback=0
        )
        parts = session.get_provider_graph_assignment_info()
    except Exception as e:  # the bindings raise one class an error code, without a base
        raise EngineError(f"ONNX Runtime cannot open {graph}: {e}") from e
    strays = [node for part in parts if part.ep_name != place.provider for node in part.get_nodes()]
    if strays:
        took = sum(len(part.get_nodes()) for part in parts) - len(strays)
        raise DeviceError(
            f"ONNX Runtime would run {len(strays)} nodes of {graph} outside of {place.device}, "
            f"and {took} there, the first is {strays[0].name} ({strays[0].op_type}): "
            f"{_instead_of(place.provider, took)}"
        )
    return session


def _instead_of(provider: str, took: int) -> str:
    """Why a provider may not have run all nodes, where it took some, or none."""
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        return f"this onnxruntime is a wheel without {provider}"
    if took:
        return f"{provider} has no kernels for them in onnxruntime {onnxruntime.__version__}"
    return f"{provider} was not started; what ONNX Runtime warned of says why"


def _allocate(
    decoder: Decoder, rows: int, capacity: int, dtype: "np.dtype[np.floating[Any]]"
) -> Caches:
    """Zeroed keys and values, [rows, kv_heads, capacity, head_dim] each, by suffix."""
    shape = (rows, decoder.kv_heads, capacity, decoder.head_dim)
    names = [f"{what}.{layer}" for layer in range(decoder.layers) for what in ("key", "value")]
    return {name: np.zeros(shape, dtype) for name in names}


def _bindable(caches: Caches, rows: int, memory: str) -> dict[str, "onnxruntime.OrtValue"]:
    """The first rows of the caches: on the CPU as values that share their memory."""
    from onnxruntime import OrtValue

    try:
        return {
            name: OrtValue.ortvalue_from_numpy(cache[:rows], memory, 0)
            for name, cache in caches.items()
        }
    except Exception as e:  # as where a graph runs
        raise _failure(f"ONNX Runtime cannot put a KV cache into {memory} memory", e) from e


def _failure(what: str, error: Exception) -> Exception:
    """ONNX Runtime's error as t1-edge's, or as a MemoryError where it says that it lacks memory."""
    said = f"{what}: {error}"
    lacks = isinstance(error, MemoryError) or any(why in said.lower() for why in _NO_MEMORY)
    return MemoryError(said) if lacks else EngineError(said)
