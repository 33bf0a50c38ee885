"""What a deadline leaves undone: passes are recorded, and take the time of a clock of their own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from scripted import TOKENIZER, ScriptedEngine
from t1_edge.build import TOKENIZER as TOKENIZER_FILE
from t1_edge.build import Build
from t1_edge.contract import Codec
from t1_edge.encoder import Encoder
from t1_edge.engines.base import Engine, EngineInfo, Float32Array, Session
from t1_edge.engines.select import EngineChoice, open_engine
from t1_edge.thinking import Settle
from t1_edge.tokenization import TextTokenizer
from tiny import TINY_CONTRACT

READING, TOKEN = 5.0, 1.0
"""Seconds of the pass that reads the rows, and of each after it."""


@dataclass
class Clock:
    """Stands in the place of the module `time`; moves when it is told to."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Paced:
    """An engine whose passes take a clock's time.

    Attributes:
        passes: What was asked for, "logits" or "peek", and when it began.
        opening: Seconds that a session takes to open.
    """

    engine: Engine
    clock: Clock
    passes: list[tuple[str, float]] = field(default_factory=list)
    opening: float = 0.0

    def __post_init__(self) -> None:
        self.batch_tokens, self.batch_rows = self.engine.batch_tokens, self.engine.batch_rows

    @property
    def info(self) -> EngineInfo:
        return self.engine.info

    def prime(self, beginnings: Sequence[Sequence[int]]) -> None:
        self.engine.prime(beginnings)

    def start(self, rows: Sequence[Sequence[int]], *, room: int) -> Session:
        self.clock.now += self.opening
        return PacedSession(self, self.engine.start(rows, room=room))

    def close(self) -> None:
        self.engine.close()

    def since(self, time: float) -> list[str]:
        """What began then, or later."""
        return [what for what, began in self.passes if began >= time]


class PacedSession:
    """A session of a paced engine: logits that are known already take no pass."""

    def __init__(self, engine: Paced, session: Session) -> None:
        self._engine = engine
        self._session = session
        self._seconds = READING
        self._scored = False

    def append(self, tokens: Mapping[int, int]) -> None:
        self._session.append(tokens)
        self._scored = self._scored and not tokens

    def logits(self) -> Float32Array:
        if not self._scored:
            self._pass("logits")
        self._scored = True
        return self._session.logits()

    def peek(self, *tokens: int) -> Float32Array:
        self._pass("peek")
        return self._session.peek(*tokens)

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> "PacedSession":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _pass(self, what: str) -> None:
        clock = self._engine.clock
        self._engine.passes.append((what, clock.now))
        clock.now += self._seconds
        self._seconds = TOKEN


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("thinking", "passes", "turns"):
        monkeypatch.setattr(f"t1_edge.{module}.time", clock)
    return clock


@pytest.fixture
def engine(clock: Clock) -> Paced:
    scripted = ScriptedEngine(vocabulary=400)
    scripted.favourite = 70
    return Paced(scripted, clock)


@pytest.fixture
def encoder(engine: Paced) -> Encoder:
    codec = Codec(TINY_CONTRACT, TOKENIZER)
    return Encoder(codec, engine, fingerprint="f", hidden=32)


DEADLINES = [at / 4 for at in range(0, 60)]


@pytest.mark.parametrize("settle", [None, Settle(cosine=1.0, every=2), Settle(cosine=1.0, every=1)])
def test_nothing_but_the_closing_pass_begins_after_a_deadline(
    encoder: Encoder, engine: Paced, clock: Clock, settle: Settle | None
) -> None:
    for deadline in DEADLINES:
        engine.passes.clear()
        began, until = clock.now, clock.now + deadline
        found = encoder.encode_query("x", budget=100, deadline=deadline, settle=settle)
        assert found.stopped_by == "deadline"
        assert engine.since(until) in ([], ["peek"])
        unmeasured = 2 * TOKEN if deadline < READING + 4 * TOKEN else 0.0
        assert clock.now <= max(until + unmeasured, began + READING + TOKEN)


def test_more_time_is_more_thought(encoder: Encoder) -> None:
    lengths = [
        len(encoder.encode_query("x", budget=100, deadline=deadline).thought_tokens)
        for deadline in DEADLINES
    ]
    assert lengths == sorted(lengths)
    assert lengths[0] == 0
    assert lengths[-1] == 9  # in 14.75 s: the first with the reading's 5, 8 more, and 1 to close


def test_a_query_without_time_is_one_pass(encoder: Encoder, engine: Paced) -> None:
    encoder.encode_query("x", budget=9, deadline=0)
    assert [what for what, _ in engine.passes] == ["peek"]
    engine.passes.clear()
    engine.opening = 3.0  # the deadline passes before there is anything to think with
    found = encoder.encode_query("x", budget=9, deadline=2)
    assert [what for what, _ in engine.passes] == ["peek"]
    assert (found.stopped_by, found.thought_tokens) == ("deadline", ())


def test_batches_behind_the_deadline_are_one_pass_each(encoder: Encoder, engine: Paced) -> None:
    found = encoder.encode_queries(["x", "y", "z"], budget=9, deadline=7, batch_size=1)
    assert [len(one.thought_tokens) for one in found] == [2, 0, 0]
    assert {one.stopped_by for one in found} == {"deadline"}
    assert [what for what, _ in engine.passes] == ["logits", "logits", "peek", "peek", "peek"]


def test_a_stream_reads_before_it_looks(encoder: Encoder, engine: Paced) -> None:
    """So that a thought is written in the passes of a call, with looks between them."""
    list(encoder.encode_query_stream("x", budget=4, every=2))
    looks = ["logits", "peek", "logits", "peek", "logits", "logits", "peek"]
    assert [what for what, _ in engine.passes] == looks


@pytest.mark.parametrize("settle", [None, Settle(cosine=1.0, every=1)])
def test_a_thought_that_closes_is_looked_at_behind_what_it_read(
    encoder: Encoder, engine: Paced, settle: Settle | None
) -> None:
    """Not as the last look saw it, which computed its last token with its close."""
    assert isinstance(engine.engine, ScriptedEngine)
    engine.engine.favourite = encoder.codec.ending[0]
    if settle:
        encoder.encode_query("x", budget=4, settle=settle)
    else:
        list(encoder.encode_query_stream("x", budget=4))
    assert [what for what, _ in engine.passes] == ["logits", "peek", "peek"]


def test_a_vector_without_a_thought_is_one_pass(encoder: Encoder, engine: Paced) -> None:
    list(encoder.encode_query_stream("x", budget=0))
    assert [what for what, _ in engine.passes] == ["peek"]


@pytest.mark.parametrize("every", [1, 3])
def test_a_stream_begins_no_pass_but_its_last_after_its_deadline(
    encoder: Encoder, engine: Paced, clock: Clock, every: int
) -> None:
    for deadline in DEADLINES:
        engine.passes.clear()
        began, until = clock.now, clock.now + deadline
        *_, last = encoder.encode_query_stream("x", budget=100, deadline=deadline, every=every)
        assert last.stopped_by == "deadline"
        assert engine.since(until) in ([], ["peek"])
        assert clock.now <= max(until, began + READING + TOKEN)  # a look was measured before


def test_a_stream_whose_reader_outlasts_its_deadline_computes_nothing_more(
    encoder: Encoder, engine: Paced, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = encoder.encode_query_stream("x", budget=9, deadline=50, every=2)
    next(stream)
    before = next(stream)
    made = list(engine.passes)
    clock.now += 100
    monkeypatch.setattr("t1_edge.passes.process_cores", None)  # nor does it wait for cores
    [last] = stream
    assert engine.passes == made
    assert (before.stopped_by, last.stopped_by) == ("open", "deadline")
    assert last.thought_tokens == before.thought_tokens
    np.testing.assert_array_equal(last.vector, before.vector)


def test_a_vector_is_not_read_twice(encoder: Encoder, engine: Paced) -> None:
    found = encoder.encode_query("x", budget=60, settle=Settle(cosine=0.995, every=2))
    assert found.stopped_by == "settled"
    steps = len(found.thought_tokens)
    kinds = [what for what, _ in engine.passes]
    assert kinds.count("logits") == steps
    assert kinds.count("peek") == 1 + steps // 2  # the direct one's, and each that was compared


@pytest.fixture(params=["onnx", "gguf"])
def real(
    request: pytest.FixtureRequest, tiny_build: Callable[..., Build], clock: Clock
) -> Iterator[tuple[Encoder, Paced]]:
    build, name = tiny_build("llama", "portable"), request.param
    choice: EngineChoice = name
    paced = Paced(open_engine(build, engine=choice, threads=1), clock)
    codec = Codec(build.manifest.contract, TextTokenizer.from_file(build.file(TOKENIZER_FILE)))
    hidden = build.manifest.decoder.hidden
    with Encoder(codec, paced, fingerprint="f", hidden=hidden) as encoder:
        yield encoder, paced


def test_engines_keep_deadlines_and_give_the_vector_of_what_was_thought(
    real: tuple[Encoder, Paced], clock: Clock
) -> None:
    encoder, engine = real
    whole = encoder.encode_query("the lake", budget=8)
    for deadline in (0.0, 6.0, 7.0, 9.0, 30.0):
        engine.passes.clear()
        until = clock.now + deadline
        found = encoder.encode_query("the lake", budget=8, deadline=deadline)
        assert engine.since(until) in ([], ["peek"])
        count = len(found.thought_tokens)
        assert found.thought_tokens == whole.thought_tokens[:count]
        alone = encoder.encode_query("the lake", budget=count)
        np.testing.assert_allclose(found.vector, alone.vector, atol=1e-6)
