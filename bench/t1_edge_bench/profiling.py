"""Where the time of a pass goes, by the parts of the model that its operations belong to."""

import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import msgspec

from t1_edge.build import TOKENIZER, Build, Format
from t1_edge.cache import find_build
from t1_edge.contract import Codec
from t1_edge.engines.base import Engine
from t1_edge.engines.places import PLACES, READER
from t1_edge.engines.select import open_engine, open_reader
from t1_edge.machine import available_threads
from t1_edge.tokenization import TextTokenizer
from t1_edge_bench.operations import Operation, Pass, Passes, watch_llama, watch_onnx
from t1_edge_bench.pydoc import questions, texts

_WARM_UP: Final = 2
"""Passes that do not count; the first of a thought reads its query."""

_WORDS: Final = 150
"""Of a text that is read."""

_PARTS: Final[dict[Format, dict[str, str]]] = {
    "onnx": {
        "rounding activations": r"\.(sizes|largest|positive|scale|shape|points|codes)$",
        "norms and sums": r"norm\.weight\.| hidden$",
        "queries, keys, values": r"\.[qkv]_proj\.",
        "attention": r"^GroupQueryAttention ",
        "output projection": r"\.o_proj\.",
        "gate and up": r"\.(gate|up)_proj\.",
        "activation": r" (silu|gated)\.\d+$",
        "down": r"\.down_proj\.",
        "head": r" logits$",
        "embedding": r" embedded$",
    },
    "gguf": {
        "norms and sums": r"^(RMS_NORM|MUL|ADD) ",
        "queries, keys, values": r"\.attn_[qkv]\.",
        "output projection": r"\.attn_output\.",
        "gate and up": r"\.ffn_(gate|up)\.",
        "activation": r"^SWIGLU ",
        "down": r"\.ffn_down\.",
        "head": r"^MUL_MAT result_output ",
        "embedding": r"^GET_ROWS \S+ token_embd\.",
        "attention": r"^(ROPE|SET_ROWS|FLASH_ATTN_EXT|SOFT_MAX|CONT) |^MUL_MAT kqv?-",
    },
}
"""What the operations of each part are called; the first that fits counts."""

_REST: Final = "rest"

Work = Literal["reading", "thinking"]


class ProfileRow(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time of one kind of pass goes, in seconds.

    Attributes:
        build: As it was asked for.
        library: What really ran.
        device: Where it ran.
        threads: CPU threads it had.
        graph: Which of the build's graphs: "everything", or "documents" alone.
        work: "reading" texts whole, or a step of "thinking".
        rows: Texts, or thoughts, that ran together.
        tokens: Of all rows in one pass.
        passes: How many nobody watched, and how many were.
        alone: A pass that nobody watched, the median.
        watched: One that was: that in the middle, by time.
        parts: What the operations of each part of the model took in that one, the largest first.
            What is missing to the whole pass is around them.
    """

    build: str
    library: str
    device: str
    threads: int
    graph: str
    work: Work
    rows: int
    tokens: int
    passes: int
    alone: float
    watched: float
    parts: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What an engine is asked for.

    Attributes:
        work: Of which kind it is.
        rows: How many run together.
        tokens: Of all rows in one pass.
        passes: Has an engine make the passes.
    """

    work: Work
    rows: int
    tokens: int
    passes: Passes


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """An engine over one of a build's graphs.

    Attributes:
        works: What it can do.
        open: Opens it, for nobody to watch.
        watch: Opens it, and gives what it does in passes.
    """

    works: tuple[Work, ...]
    open: Callable[[], Engine]
    watch: Callable[[Passes], list[Pass]]


def profile(
    build: str,
    *,
    engine: Format,
    documents: int = 2,
    thoughts: int = 1,
    passes: int = 10,
    threads: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[ProfileRow]:
    """Find where the time of reading and of thinking goes, on the CPU.

    An engine is opened twice for each, and makes the same passes: alone first, then watched.

    Args:
        build: Name or path of the build.
        engine: Which of its formats; ONNX Runtime reads by the graph for documents, too, where
            there is one.
        documents: Texts of 150 words that are read together.
        thoughts: How many are written together, behind questions.
        passes: How many count, alone and watched.
        threads: CPU threads; those the process may use if None.
        say: Called with a line of talk.

    Raises:
        BuildError: If the build is damaged, or does not hold the format.
        CacheError: If there is no such build.
        EngineError: If the engine fails, or does not take so many rows.
        InputError: If there are no threads, or more than processors.
        MissingExtraError: If the engine's library is not installed.
    """
    opened = Build(find_build(build))
    threads = available_threads() if threads is None else threads
    tasks = _tasks(opened, documents, thoughts, passes + _WARM_UP, say)
    rows = []
    for subject in _subjects(opened, engine, threads):
        for work in subject.works:
            say(f"{engine}: {work} (passes: {passes} alone, {passes} watched)")
            rows.append(_profile(build, engine, subject, tasks[work]))
    return rows


def part_of(operation: str, engine: Format) -> str:
    """The part of the model that an operation belongs to; "rest" if it is of none.

    Args:
        operation: See `Operation.name`.
        engine: Whose it is.
    """
    fitting = (part for part, called in _PARTS[engine].items() if re.search(called, operation))
    return next(fitting, _REST)


def _profile(build: str, engine: Format, subject: _Subject, task: _Task) -> ProfileRow:
    with closing(subject.open()) as unwatched:
        alone = list(task.passes(unwatched))[_WARM_UP:]
        info = unwatched.info
    watched = sorted(subject.watch(task.passes)[_WARM_UP:], key=lambda one: one.seconds)
    middle = watched[(len(watched) - 1) // 2]
    parts = _by_part(middle.operations, engine)
    return ProfileRow(
        build=build,
        library=info.library,
        device=info.device,
        threads=info.threads,
        graph=info.graph,
        work=task.work,
        rows=task.rows,
        tokens=task.tokens,
        passes=len(watched),
        alone=statistics.median(alone),
        watched=middle.seconds,
        parts=dict(sorted(parts.items(), key=lambda item: -item[1])),
    )


def _by_part(operations: Sequence[Operation], engine: Format) -> dict[str, float]:
    """Seconds of the parts that a pass has."""
    seconds: dict[str, float] = {}
    for operation in operations:
        part = part_of(operation.name, engine)
        seconds[part] = seconds.get(part, 0.0) + operation.seconds
    return seconds


def _tasks(
    build: Build, documents: int, thoughts: int, passes: int, say: Callable[[str], None]
) -> Mapping[Work, _Task]:
    tokenizer = TextTokenizer.from_file(build.file(TOKENIZER))
    codec = Codec(build.manifest.contract, tokenizer)
    found = [codec.document(text) for text in texts(documents, _WORDS)]
    if cut := sum(row.truncated for row in found):
        say(f"{cut} of {documents} texts are cut to {codec.contract.max_document_tokens} tokens")
    read = [row.tokens for row in found]
    asked = [codec.query(question.text).tokens for question in questions()[:thoughts]]
    return {
        "reading": _Task(
            work="reading",
            rows=len(read),
            tokens=sum(len(row) + 1 for row in read),
            passes=partial(_read, rows=read, last=codec.emb_id, passes=passes),
        ),
        "thinking": _Task(
            work="thinking",
            rows=len(asked),
            tokens=len(asked),
            passes=partial(_think, rows=asked, passes=passes),
        ),
    }


def _subjects(build: Build, engine: Format, threads: int) -> Iterator[_Subject]:
    yield _Subject(
        works=("reading", "thinking"),
        open=partial(open_engine, build, engine=engine, device="cpu", threads=threads),
        watch=partial(watch_onnx, build, PLACES["cpu"], threads)
        if engine == "onnx"
        else partial(watch_llama, build, threads),
    )
    if engine == "onnx" and build.has_documents_graph:
        yield _Subject(
            works=("reading",),
            open=partial(open_reader, build, threads=threads),
            watch=partial(watch_onnx, build, READER, threads),
        )


def _read(
    engine: Engine, *, rows: Sequence[Sequence[int]], last: int, passes: int
) -> Iterator[float]:
    """Embed documents, over and over; the seconds of each time."""
    for _ in range(passes):
        with engine.start(rows, room=1) as session:
            began = time.perf_counter()
            session.peek(last)
            yield time.perf_counter() - began


def _think(engine: Engine, *, rows: Sequence[Sequence[int]], passes: int) -> Iterator[float]:
    """Write thoughts, greedily and without an end; the seconds of each step."""
    with engine.start(rows, room=passes) as session:
        for _ in range(passes):
            began = time.perf_counter()
            scores = session.logits()
            yield time.perf_counter() - began
            session.append(dict(enumerate(scores.argmax(axis=1).tolist())))
