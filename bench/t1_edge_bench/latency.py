"""How long a build takes: each engine in a process of its own, so that its memory is its own."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any, Final

import msgspec
import numpy as np

from t1_edge.build import Build
from t1_edge.cache import find_build
from t1_edge.encoder import Encoder
from t1_edge.engines.base import Engine
from t1_edge.engines.select import available_threads, open_engine
from t1_edge.errors import EngineError
from t1_edge.results import QueryEmbedding
from t1_edge_bench.bandwidth import peak_resident_bytes, read_bandwidth
from t1_edge_bench.pydoc import passages, questions

_WARM_UP: Final = 2
_QUERIES: Final = 20
_DOCUMENTS: Final = 32
_DOCUMENT_WORDS: Final = 150
_THINKING_STEPS: Final = 32


class LatencyRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one build costs on one engine. Times in seconds, sizes in bytes.

    Attributes:
        build: Name or path of the build.
        engine: Library that really ran.
        device: Where it ran.
        threads: CPU threads it had.
        load: From the call to an encoder that is ready, golden check aside.
        prefill_tokens_per_second: Reading documents of about 150 words.
        thinking_tokens_per_second: Writing one thought.
        thinking_tokens_per_second_8: Writing eight thoughts at once, all tokens together.
        query_p50: Time to vector by budget.
        query_p95: The same, the slowest in twenty.
        query_samples: Every measured time by budget, in the order they were taken.
        weight_bytes: Graph and weights, which a step of thinking reads once.
        read_bandwidth: What this machine's memory gives, bytes a second, measured in this run.
        bandwidth_share: Share of it that writing one thought used.
        peak_resident: Most memory the process had.
    """

    build: str
    engine: str
    device: str
    threads: int
    load: float
    prefill_tokens_per_second: float
    thinking_tokens_per_second: float
    thinking_tokens_per_second_8: float
    query_p50: dict[int, float]
    query_p95: dict[int, float]
    query_samples: dict[int, list[float]]
    weight_bytes: int
    read_bandwidth: float
    bandwidth_share: float
    peak_resident: int


def latency(
    build: str,
    budgets: Sequence[int],
    *,
    engine: str,
    threads: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> LatencyRow:
    """Measure one build on one engine, in a fresh process.

    Args:
        build: Name or path of the build.
        budgets: Most tokens of a thought; times to vector are taken for each.
        engine: "onnx" or "gguf".
        threads: CPU threads; those the process may use if None.
        say: Called with a line of talk.

    Raises:
        EngineError: If the process fails; with what it said last.
    """
    threads = threads or available_threads()
    say(f"measuring {engine} in a process of its own")
    request = json.dumps([build, list(budgets), engine, threads])
    command = [sys.executable, "-m", "t1_edge_bench.latency", request]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise EngineError(f"measuring {engine} failed: {last}")
    measured: dict[str, Any] = json.loads(done.stdout)
    # The ceiling is measured here: its buffer must not count as the engine's memory.
    ceiling = read_bandwidth(threads)
    used = measured["weight_bytes"] * measured["thinking_tokens_per_second"]
    shares = {"read_bandwidth": ceiling, "bandwidth_share": used / ceiling}
    return msgspec.convert(measured | shares, LatencyRow, strict=False)


def _measure(name: str, budgets: Sequence[int], engine: Any, threads: int) -> dict[str, Any]:
    """What the process of its own does; LatencyRow without the machine's bandwidth."""
    build = Build(find_build(name))
    began = time.perf_counter()
    open_engine(build, engine=engine, threads=threads).close()
    load = time.perf_counter() - began
    with Encoder.load(build.path, engine=engine, threads=threads) as encoder:
        samples = {budget: _query_times(encoder, budget) for budget in budgets}
        prefill = _prefill_rate(encoder)
        info = encoder.info
    running = open_engine(build, engine=engine, threads=threads)
    thinking = [_thinking_rate(running, rows) for rows in (1, 8)]
    running.close()
    return {
        "build": build.manifest.name,
        "engine": info.library,
        "device": info.device,
        "threads": info.threads,
        "load": load,
        "prefill_tokens_per_second": prefill,
        "thinking_tokens_per_second": thinking[0],
        "thinking_tokens_per_second_8": thinking[1],
        "query_p50": {b: float(np.percentile(times, 50)) for b, times in samples.items()},
        "query_p95": {b: float(np.percentile(times, 95)) for b, times in samples.items()},
        "query_samples": samples,
        "weight_bytes": build.size(engine),
        "peak_resident": peak_resident_bytes(),
    }


def _query_times(encoder: Encoder, budget: int) -> list[float]:
    texts = islice(cycle(question.text for question in questions()), _WARM_UP + _QUERIES)
    found: list[QueryEmbedding] = [encoder.encode_query(t, budget=budget) for t in texts]
    return [query.timings.total for query in found[_WARM_UP:]]


def _prefill_rate(encoder: Encoder) -> float:
    """Tokens a second over real passages, joined to the length of a textbook's."""
    words = " ".join(passage.text for passage in passages()).split()
    starts = range(0, _DOCUMENTS * _DOCUMENT_WORDS, _DOCUMENT_WORDS)
    texts = [" ".join(words[at : at + _DOCUMENT_WORDS]) for at in starts]
    encoder.embed_documents(texts[:_WARM_UP], truncate=True)
    found = encoder.embed_documents(texts, truncate=True)
    return float(found.tokens.sum() / found.seconds)


def _thinking_rate(engine: Engine, rows: int) -> float:
    """Tokens a second of greedy writing behind a short prompt, all rows together."""
    prompt = list(range(100, 140))
    with engine.start([prompt] * rows, room=_THINKING_STEPS + _WARM_UP + 1) as session:
        for step in range(_THINKING_STEPS + _WARM_UP):
            if step == _WARM_UP:
                began = time.perf_counter()
            best = session.logits().argmax(axis=1).tolist()
            session.append(dict(enumerate(best)))
        session.logits()
        return rows * _THINKING_STEPS / (time.perf_counter() - began)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure(*json.loads(sys.argv[1]))))
