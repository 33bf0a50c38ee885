"""Token rows through an engine, to results: queries that think, with thoughts, and documents.

Who computes holds as many cores as its engine has threads, so that encoders of one process do not
run more threads together than there are cores.
"""

import itertools
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace

from t1_edge.batching import batches
from t1_edge.contract import Codec, Row
from t1_edge.cores import process_cores
from t1_edge.engines.base import Engine, EngineInfo, Float32Array
from t1_edge.errors import EngineError, InputError
from t1_edge.results import QueryEmbedding, Timings
from t1_edge.thinking import Settle, Thinking, Thought
from t1_edge.turns import Turn, Turns
from t1_edge.vectors import normalised


class Passes:
    """What an encoder has its engine do. Calls from several threads take turns.

    Args:
        codec: Knows the tokens around a thought, and what it says.
        engine: Closed with this.
        reader: Called before documents are first read: opens what reads them in the engine's place.
            Closed with this too. The engine reads them itself if None.
    """

    def __init__(
        self, codec: Codec, engine: Engine, reader: Callable[[], Engine] | None = None
    ) -> None:
        self._codec = codec
        self._engine = engine
        self._open_reader = reader
        self._reader = engine
        engine.prime(_worth(codec.beginnings))
        self._turns = Turns()

    @property
    def info(self) -> EngineInfo:
        """What runs, and on which device."""
        return self._engine.info

    def read_by(self) -> EngineInfo:
        """What reads documents; it is opened if it has to be.

        Raises:
            EngineError: If it cannot be opened, or this thread has a stream open.
        """
        with self._turns.take(), self._cores():
            return self._documents_engine().info

    @property
    def most_rows(self) -> int:
        """Rows that may run together."""
        return self._engine.batch_rows

    def think(
        self, rows: Sequence[Row], budget: int, until: float | None, settle: Settle | None
    ) -> list[QueryEmbedding]:
        """Let queries think together, and embed them.

        Args:
            rows: Of queries.
            budget: Most tokens of a thought.
            until: Time by `time.monotonic` by which they shall be done. Whenever it is, the rows
                are read; if it has passed by then, by the pass that closes their thoughts.
            settle: When a thought ends since its vector has come to rest.

        Returns:
            A result for each row.

        Raises:
            EngineError: If the engine fails, a vector is not one, or this thread has a stream open.
        """
        with self._turns.take(), self._cores():
            clock = [time.monotonic()]
            tokens = [row.tokens for row in rows]
            with self._engine.start(tokens, room=budget + 2) as session:
                thinking = Thinking(session, len(rows), self._codec, budget=budget, deadline=until)
                thinking.read()
                clock.append(time.monotonic())
                thinking.finish(settle)
                clock.append(time.monotonic())
                vectors = self._vectors(thinking)
            clock.append(time.monotonic())
        return self.results(rows, thinking.thoughts, vectors, _timings(clock))

    def stream(
        self, row: Row, budget: int, until: float | None, every: int
    ) -> Generator[QueryEmbedding, None, None]:
        """Embed a query at once and as its thought grows.

        The engine is free before the last result is given, and for who waits once its reader has
        a result past the deadline: that computes nothing more.

        Args:
            row: Of the query.
            budget: Most tokens of the thought.
            until: Time by `time.monotonic` by which the last result shall be done.
            every: Tokens between two vectors.

        Yields:
            See `Encoder.encode_query_stream`.

        Raises:
            EngineError: As `think`, and if the encoder was closed while the reader had a vector.
        """
        with self._turns.stream(until) as turn, ExitStack() as held:
            with self._cores():
                session = held.enter_context(self._engine.start([row.tokens], room=budget + 2))
            turn.free = session.close
            thinking = Thinking(session, 1, self._codec, budget=budget, deadline=until)
            last = yield from self._follow(row, thinking, turn, every)
        yield last

    def read_with(self, rows: Sequence[Row], texts: Sequence[str]) -> list[QueryEmbedding]:
        """Embed queries together, each behind a thought that is given.

        Args:
            rows: Of queries.
            texts: Their thoughts.

        Raises:
            InputError: If a thought holds a lone surrogate.
            EngineError: As `think`.
        """
        found = [self._codec.thought_tokens(text) for text in texts]
        thoughts = [Thought(tokens=tokens, stopped_by="given") for tokens in found]
        whole = [
            (*row.tokens, *thought.tokens, self._codec.close_id)
            for row, thought in zip(rows, thoughts, strict=True)
        ]
        with self._turns.take(), self._cores():
            began = time.monotonic()
            vectors = self._embed(whole, self._engine)
            seconds = time.monotonic() - began
        return self.results(rows, thoughts, vectors, _embedding(seconds))

    def documents(
        self,
        rows: Sequence[Row],
        out: Float32Array,
        progress: Callable[[int], None],
        most: int | None = None,
    ) -> EngineInfo:
        """Embed document rows, those of like length together.

        Args:
            rows: Without `emb_token`.
            out: Written: float32 [n, d], in their order.
            progress: Called with the number of documents that a finished batch held.
            most: Rows that run together; as many as run well if None.

        Returns:
            What read them.

        Raises:
            EngineError: As `think`, and if what reads documents cannot be opened.
        """
        with self._turns.take(), self._cores():
            reader = self._documents_engine()
        for batch in batches([len(row.tokens) + 1 for row in rows], reader, most):
            with self._turns.take(), self._cores():
                out[batch] = self._embed([rows[at].tokens for at in batch], reader)
            progress(len(batch))
        return reader.info

    def results(
        self,
        rows: Sequence[Row],
        thoughts: Sequence[Thought],
        vectors: Float32Array,
        timings: Timings,
        *,
        cached: bool = False,
    ) -> list[QueryEmbedding]:
        """What comes back from an encoder.

        Args:
            rows: Of queries.
            thoughts: One for each.
            vectors: float32 [n, d], L2-normalised.
            timings: Of them all.
            cached: Whether they were kept from an earlier time.
        """
        return [
            QueryEmbedding(
                vector=vector,
                thought=self._codec.thought_text(thought.tokens),
                thought_tokens=thought.tokens,
                stopped_by=thought.stopped_by,
                truncated=row.truncated,
                prompt_tokens=len(row.tokens),
                timings=timings,
                engine=self.info,
                cached=cached,
            )
            for row, thought, vector in zip(rows, thoughts, vectors, strict=True)
        ]

    def close(self) -> None:
        """Free the engine once what runs has ended: a stream's pass, not the stream.

        A forked process has nothing to free: the engine is its parent's.

        Raises:
            EngineError: If this thread computes: a signal's handler asks.
        """
        if self._turns.is_forked:
            return
        with self._turns.take_to_close():
            self._close()

    def _close(self) -> None:
        self._open_reader = None
        try:
            self._reader.close()
        finally:
            self._engine.close()

    def _documents_engine(self) -> Engine:
        """What reads documents, opened if it has to be."""
        if self._open_reader is not None:
            self._reader = self._open_reader()
            self._open_reader = None
            self._reader.prime(_worth(self._codec.beginnings[1:]))
        return self._reader

    def _cores(self) -> AbstractContextManager[None]:
        """While the engine computes; a GPU's needs a core to be told what to do."""
        return process_cores().hold(self.info.threads if self.info.device == "cpu" else 1)

    def _follow(
        self, row: Row, thinking: Thinking, turn: Turn, every: int
    ) -> Generator[QueryEmbedding, None, QueryEmbedding]:
        """The results of a stream; what its reader does between them is not counted.

        Returns:
            The last, which needs no engine any more.
        """
        seconds, steps = 0.0, 0
        while True:
            vectors, took = self._grow(thinking, steps)
            seconds, steps = seconds + took, every
            goes_on = thinking.goes_on()
            [found] = self.results([row], thinking.thoughts, vectors, _embedding(seconds))
            if not goes_on:
                return found
            with self._turns.rest(turn):
                yield found
            if not thinking.goes_on():  # it was with its reader until the deadline
                [thought] = thinking.thoughts
                return replace(found, stopped_by=thought.stopped_by)
            if turn.taken:  # before the deadline: by who closed the encoder
                raise EngineError(
                    "the encoder was closed under this stream: load one and ask again"
                )

    def _grow(self, thinking: Thinking, steps: int) -> tuple[Float32Array, float]:
        """Vectors once a thought has made some steps, or ended before; and the seconds of it."""
        with self._cores():
            began = time.monotonic()
            thinking.read()
            while steps and thinking.goes_on():
                thinking.step()
                steps -= 1
            vectors = self._vectors(thinking)
            return vectors, time.monotonic() - began

    def _embed(self, rows: Sequence[Sequence[int]], engine: Engine) -> Float32Array:
        with engine.start(rows, room=1) as session:
            return normalised(session.peek(self._codec.emb_id), engine.info)

    def _vectors(self, thinking: Thinking) -> Float32Array:
        return normalised(thinking.peek(), self._engine.info)


def _worth(beginnings: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Those that are more than one token."""
    return [tokens for tokens in dict.fromkeys(beginnings) if len(tokens) > 1]


def slices(count: int, size: int) -> Iterator[slice]:
    """Parts of a sequence of so many, each of a size but the last."""
    return (slice(at, at + size) for at in range(0, count, size))


def refuse_cut(rows: Sequence[Row], limit: int) -> None:
    """Refuse documents of which some were over the limit of tokens.

    Raises:
        InputError: With how many, and where the first is.
    """
    cut = [at for at, row in enumerate(rows) if row.truncated]
    if cut:
        raise InputError(
            f"{len(cut)} of {len(rows)} documents have more than {limit} tokens, the first is "
            f"texts[{cut[0]}]: split them, or call embed_documents(..., truncate=True)"
        )


def _timings(clock: Sequence[float]) -> Timings:
    prefill, thinking, embedding = (b - a for a, b in itertools.pairwise(clock))
    total = clock[-1] - clock[0]
    return Timings(prefill=prefill, thinking=thinking, embedding=embedding, total=total)


def _embedding(seconds: float) -> Timings:
    return Timings(prefill=0.0, thinking=0.0, embedding=seconds, total=seconds)
