"""How long a build takes: each engine in a process of its own, so that its memory is its own."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from t1_edge.bandwidth import read_bandwidth
from t1_edge.build import Build, Format
from t1_edge.cache import find_build
from t1_edge.encoder import Encoder
from t1_edge.engines.base import Engine, Session
from t1_edge.engines.opening import require
from t1_edge.engines.select import open_engine
from t1_edge.errors import EngineError, T1Error
from t1_edge.machine import available_threads, peak_resident_bytes
from t1_edge.processes import how_ended
from t1_edge_bench.pydoc import questions, texts

_WARM_UP: Final = 2
_REPEATS: Final = 3
_DOCUMENT_WORDS: Final = 150
_THINKING_STEPS: Final = 32

_TALK: Final = "t1-edge: "
"""How a line begins that the process of its own has for whoever waits."""


class LatencyRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one build costs on one engine. Times in seconds, sizes in bytes, rates a second.

    Rates and `load` are medians of three; their samples are in the order they were taken.

    Attributes:
        build: As it was asked for.
        library: What really ran.
        device: Where it ran.
        threads: CPU threads it had.
        load: From the call to an encoder that is ready, in a process that has loaded the library
            and seen the golden vectors come out.
        documents: How many texts of about 150 words were read.
        prefill_tokens: Reading them.
        thinking_tokens: Writing one thought.
        thinking_tokens_8: Writing eight thoughts at once, all tokens together.
        query_p50: From the call to the vector, by budget.
        query_p95: The same, 95th percentile, interpolated.
        query_samples: Every measured time by budget.
        rate_samples: Every measured value of `load` and of the three rates, by field.
        weight_bytes: Graph and weights.
        step_bytes: What of it a step of thinking reads.
        read_bandwidth: What this machine's memory gives, bytes a second, measured in this run.
        bandwidth_share: Share of it that writing one thought used.
        peak_resident: Most memory the process had.
    """

    build: str
    library: str
    device: str
    threads: int
    load: float
    documents: int
    prefill_tokens: float
    thinking_tokens: float
    thinking_tokens_8: float
    query_p50: dict[int, float]
    query_p95: dict[int, float]
    query_samples: dict[int, list[float]]
    rate_samples: dict[str, list[float]]
    weight_bytes: int
    step_bytes: int
    read_bandwidth: float
    bandwidth_share: float
    peak_resident: int


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the process of its own is asked for; `output` is where it writes its LatencyRow."""

    build: str
    budgets: list[int]
    documents: int
    queries: int
    engine: Format
    threads: int
    read_bandwidth: float
    output: str


def latency(
    build: str,
    budgets: Sequence[int],
    *,
    engine: Format,
    documents: int,
    queries: int,
    threads: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> LatencyRow:
    """Measure one build on one engine, in a fresh process.

    Args:
        build: Name or path of the build.
        budgets: Most tokens of a thought; times to vector are taken for each.
        engine: Which of the build's formats.
        documents: How many texts of about 150 words are read, three times.
        queries: How many queries are embedded, at each budget.
        threads: CPU threads; those the process may use if None.
        say: Called with a line of talk.

    Raises:
        BuildError: If the build is damaged.
        CacheError: If there is no such build.
        EngineError: If the process fails; with what it said last.
        MissingExtraError: If the engine's library is not installed.
    """
    Build(find_build(build))
    require(engine)
    threads = available_threads() if threads is None else threads
    # The ceiling is measured here: its buffer must not count as the engine's memory.
    ceiling = read_bandwidth(threads)
    say(f"measuring {engine} in a process of its own")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "row.json"
        request = _Request(
            build=build,
            budgets=list(budgets),
            documents=documents,
            queries=queries,
            engine=engine,
            threads=threads,
            read_bandwidth=ceiling,
            output=str(output),
        )
        asked = msgspec.json.encode(request).decode()
        command = [sys.executable, "-m", "t1_edge_bench.latency", asked]
        _watch(command, f"measuring {engine}", say)
        return msgspec.json.decode(output.read_bytes(), type=LatencyRow)


def _watch(command: Sequence[str], what: str, say: Callable[[str], None]) -> None:
    """Run a process to its end; what it says comes through.

    Raises:
        EngineError: If it fails; with what it said last.
    """
    last: deque[str] = deque(maxlen=20)
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            for line in process.stderr or ():
                if line.startswith(_TALK):
                    say(line.removeprefix(_TALK).rstrip())
                else:
                    last.append(line)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise EngineError(f"{what} {how_ended(process.returncode, ''.join(last))}")


def _measure(request: _Request) -> LatencyRow:
    """What the process of its own does."""
    build = Build(find_build(request.build))
    _say("loading")
    loads = [_load_time(build, request) for _ in range(_REPEATS + 1)][1:]
    with Encoder.load(
        build.path, engine=request.engine, threads=request.threads, cache=False
    ) as encoder:
        queries = {
            budget: _query_times(encoder, budget, request.queries) for budget in request.budgets
        }
        prefill = _prefill_rates(encoder, request.documents)
        info = encoder.info
    running = open_engine(build, engine=request.engine, threads=request.threads)
    one, eight = (_thinking_rates(running, rows) for rows in (1, 8))
    running.close()
    step = _step_bytes(build, request.engine)
    return LatencyRow(
        build=request.build,
        library=info.library,
        device=info.device,
        threads=info.threads,
        load=statistics.median(loads),
        documents=request.documents,
        prefill_tokens=statistics.median(prefill),
        thinking_tokens=statistics.median(one),
        thinking_tokens_8=statistics.median(eight),
        query_p50={budget: float(np.percentile(times, 50)) for budget, times in queries.items()},
        query_p95={budget: float(np.percentile(times, 95)) for budget, times in queries.items()},
        query_samples=queries,
        rate_samples={
            "load": loads,
            "prefill_tokens": prefill,
            "thinking_tokens": one,
            "thinking_tokens_8": eight,
        },
        weight_bytes=build.size(request.engine),
        step_bytes=step,
        read_bandwidth=request.read_bandwidth,
        bandwidth_share=step * statistics.median(one) / request.read_bandwidth,
        peak_resident=peak_resident_bytes(),
    )


def _step_bytes(build: Build, engine: Format) -> int:
    """An embedding that is not the head as well is not read: a step takes one row of it."""
    decoder = build.manifest.decoder
    if decoder.tied:
        return build.size(engine)
    return build.size(engine) - decoder.vocabulary * _embedding_row(build, engine)


def _embedding_row(build: Build, engine: Format) -> int:
    """Bytes of a token's embedding: float32, or 8 bits and a float16 scale a block."""
    manifest = build.manifest
    if manifest.profile == "float":
        return 4 * manifest.decoder.hidden
    # A GGUF has blocks of 32, and all 8 bits of an ONNX are in blocks of one size.
    wide = [size for size in (64, 128) if f"q8_{size}" in manifest.encodings]
    block_size = wide[0] if wide and engine == "onnx" else 32
    return manifest.decoder.hidden + 2 * manifest.decoder.hidden // block_size


def _load_time(build: Build, request: _Request) -> float:
    began = time.perf_counter()
    Encoder.load(build.path, engine=request.engine, threads=request.threads, cache=False).close()
    return time.perf_counter() - began


def _say(text: str) -> None:
    """To the process that asked."""
    sys.stderr.write(f"{_TALK}{text}\n")


def _query_times(encoder: Encoder, budget: int, count: int) -> list[float]:
    _say(f"embedding {count} queries with a budget of {budget}")
    times = []
    for text in islice(cycle(question.text for question in questions()), _WARM_UP + count):
        began = time.perf_counter()
        encoder.encode_query(text, budget=budget)
        times.append(time.perf_counter() - began)
    return times[_WARM_UP:]


def _prefill_rates(encoder: Encoder, count: int) -> list[float]:
    """Tokens a second over real passages, joined to the length of a textbook's."""
    _say(f"reading {count} documents, {_REPEATS} times")
    documents = texts(count, _DOCUMENT_WORDS)
    encoder.embed_documents(documents[:_WARM_UP], truncate=True)
    found = [encoder.embed_documents(documents, truncate=True) for _ in range(_REPEATS)]
    return [float(read.tokens.sum() / read.seconds) for read in found]


def _thinking_rates(engine: Engine, rows: int) -> list[float]:
    """Tokens a second of greedy writing behind a short prompt, all rows together."""
    _say(f"thinking, {rows} at once")
    prompt = list(range(100, 140))
    rates = []
    with engine.start([prompt] * rows, room=_THINKING_STEPS * _REPEATS + _WARM_UP + 1) as session:
        _write(session, _WARM_UP)
        for _ in range(_REPEATS):
            began = time.perf_counter()
            _write(session, _THINKING_STEPS)
            rates.append(rows * _THINKING_STEPS / (time.perf_counter() - began))
    return rates


def _write(session: Session, tokens: int) -> None:
    """So many tokens for every row. A token runs when the next one asks for its logits."""
    for _ in range(tokens):
        best = session.logits().argmax(axis=1).tolist()
        session.append(dict(enumerate(best)))


if __name__ == "__main__":
    asked = msgspec.json.decode(sys.argv[1], type=_Request)
    try:
        Path(asked.output).write_bytes(msgspec.json.encode(_measure(asked)))
    except T1Error as e:
        sys.exit(str(e))
