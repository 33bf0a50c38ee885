"""What an engine does in a pass, operation by operation, and how long each takes; on the CPU.

ONNX Runtime says so itself, in whole microseconds, with the rest of each cut off. llama.cpp calls
back around each operation: that keeps it from running several as one, and has it start its threads
for each, so that small operations seem to take some microseconds more than they do.
"""

import ctypes
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from t1_edge.build import GGUF_MODEL, Build
from t1_edge.engines.base import Engine
from t1_edge.engines.places import Place
from t1_edge.errors import EngineError


class Operation(NamedTuple):
    """One node of an engine's graph, as it ran once.

    Attributes:
        name: Its kind, its name, and in llama.cpp the names of what it reads.
        seconds: How long it took.
    """

    name: str
    seconds: float


class Pass(NamedTuple):
    """One pass of an engine.

    Attributes:
        seconds: By the clock of who asked for it.
        operations: In the order they ran.
    """

    seconds: float
    operations: list[Operation]


Passes = Callable[[Engine], Iterator[float]]
"""Has an engine make passes, and yields the seconds of each once it is over."""


def watch_onnx(build: Build, place: Place, threads: int, passes: Passes) -> list[Pass]:
    """Have ONNX Runtime make passes, each of which runs the graph once.

    Args:
        build: Holds the graph.
        place: Which graph, and where.
        threads: CPU threads.
        passes: What is asked of the engine.

    Raises:
        EngineError: If ONNX Runtime refuses the graph, fails, or cannot note so many operations.
    """
    from t1_edge.engines.onnx import OnnxEngine

    decoder = build.manifest.decoder
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "passes"
        with closing(
            OnnxEngine(build.path, decoder, threads=threads, place=place, profile=profile)
        ) as engine:
            seconds = list(passes(engine))
        [written] = Path(folder).iterdir()
        runs = _runs(written.read_bytes())
    # What ran before was the engine's own.
    return [Pass(*found) for found in zip(seconds, runs[-len(seconds) :], strict=True)]


def watch_llama(build: Build, threads: int, passes: Passes) -> list[Pass]:
    """Have llama.cpp make passes.

    Args:
        build: Holds a GGUF.
        threads: CPU threads.
        passes: What is asked of the engine.

    Raises:
        EngineError: If llama.cpp refuses the file, fails, or has other tensors than are known here.
    """
    from t1_edge.engines.llama import LlamaEngine

    observer, manifest = _Observer(), build.manifest
    with closing(
        LlamaEngine(
            build.path / GGUF_MODEL,
            manifest.decoder,
            threads=threads,
            exact=manifest.profile == "float",
            observer=observer.callback,
        )
    ) as engine:
        with observer.interruptible():
            return [Pass(seconds, observer.take()) for seconds in passes(engine)]


class _Arguments(msgspec.Struct, frozen=True):
    op_name: str = ""


class _Event(msgspec.Struct, frozen=True):
    """What ONNX Runtime writes of a node, and of a run behind its nodes; in microseconds."""

    name: str
    dur: int
    args: _Arguments = _Arguments()


_KERNEL: Final = "_kernel_time"
_MOST_EVENTS: Final = 1_000_000
"""That ONNX Runtime notes (core/common/profiler.h); later ones are lost."""


def _runs(profile: bytes) -> list[list[Operation]]:
    """The operations of each run of a session.

    Raises:
        EngineError: If some may be missing.
    """
    events = msgspec.json.decode(profile, type=list[_Event])
    if len(events) >= _MOST_EVENTS:
        raise EngineError(f"ONNX Runtime notes {_MOST_EVENTS:,} operations: watch fewer passes")
    runs: list[list[Operation]] = []
    operations: list[Operation] = []
    for event in events:
        if event.name.endswith(_KERNEL):
            name = f"{event.args.op_name} {event.name.removesuffix(_KERNEL)}"
            operations.append(Operation(name, event.dur / 1e6))
        elif event.name == "model_run":
            runs.append(operations)
            operations = []
    return runs


class _Tensor(ctypes.Structure):
    """ggml_tensor, as llama.cpp's ggml/include/ggml.h lays it out."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("elements", ctypes.c_int64 * 4),
        ("strides", ctypes.c_size_t * 4),
        ("operation", ctypes.c_int),
        ("parameters", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("sources", ctypes.c_void_p * 10),
        ("viewed", ctypes.c_void_p),
        ("view_offset", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


_NOTHING_TO_DO: Final = {"VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE"}


class _Observer:
    """Notes what llama.cpp computes.

    Attributes:
        callback: For llama.cpp; lives as long as this.
    """

    def __init__(self) -> None:
        import llama_cpp
        from llama_cpp import _ggml

        library: Any = _ggml.libggml
        self._kind = library.ggml_op_desc
        self._kind.argtypes, self._kind.restype = [ctypes.c_void_p], ctypes.c_char_p
        self._name = library.ggml_get_name
        self._name.argtypes, self._name.restype = [ctypes.c_void_p], ctypes.c_void_p
        self._operations: list[Operation] = []
        self._failure: BaseException | None = None
        self._began = 0.0
        api: Any = llama_cpp
        self.callback = api.ggml_backend_sched_eval_callback(self._around)

    def take(self) -> list[Operation]:
        """What was computed since the last time.

        Raises:
            EngineError: If tensors do not lie in memory as is known here.
        """
        self._check()
        taken, self._operations = self._operations, []
        return taken

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """While llama.cpp calls back, whatever goes wrong there is raised here in its place.

        A signal that comes while it computes would be heard at the callback's first instruction,
        where no `try` helps.
        """
        here = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGINT, self._interrupt) if here else None
        try:
            yield
        finally:
            if before is not None:
                signal.signal(signal.SIGINT, before)
            self._check()

    def _interrupt(self, number: int, frame: object) -> None:
        self._failure = self._failure or KeyboardInterrupt()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _around(self, address: int, asks: bool, _: object) -> bool:
        """Before an operation, whether it is to be computed by itself; behind it, to go on."""
        try:
            if asks:
                self._began = time.perf_counter()
                return self._kind(address).decode() not in _NOTHING_TO_DO
            self._note(address, time.perf_counter() - self._began)
        except Exception as e:  # ctypes would print it, and go on
            self._failure = self._failure or e
        return self._failure is None

    def _note(self, address: int, seconds: float) -> None:
        if self._name(address) != address + _Tensor.name.offset:
            import llama_cpp

            raise EngineError(
                f"llama-cpp-python {llama_cpp.__version__} has other tensors than 0.3.36, after "
                "which t1-edge reads their names: they cannot be told apart"
            )
        tensor = _Tensor.from_address(address)
        sources = [_Tensor.from_address(source).name for source in tensor.sources if source]
        words = [self._kind(address), tensor.name, *sources]
        self._operations.append(Operation(b" ".join(words).decode(), seconds))
