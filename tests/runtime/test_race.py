"""Which of two engines is the faster one: what they do for it, and that it is kept."""

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from t1_edge.build import Build, Format
from t1_edge.encoder import Encoder
from t1_edge.engines import race, select
from t1_edge.engines.fake import FakeEngine, FakeSession
from t1_edge.engines.select import DocumentGraph, _opened
from t1_edge.errors import InputError

FORMATS: tuple[Format, ...] = ("onnx", "gguf")

PACES = {"onnx": race.Pace(reading=1.0, step=0.2), "gguf": race.Pace(reading=2.0, step=0.1)}
"""The first is the faster reader, the other the faster thinker: from 10 tokens on it wins."""


class Counting(FakeEngine):
    """Notes which rows it is asked for, and how far they may grow."""

    def __init__(self, *, vocabulary: int) -> None:
        super().__init__(vocabulary=vocabulary)
        self.started: list[tuple[list[int], int]] = []

    def start(self, rows: Sequence[Sequence[int]], *, room: int) -> FakeSession:
        self.started.append(([len(row) for row in rows], room))
        return super().start(rows, room=room)


@pytest.mark.parametrize("documents", [True, False])
def test_the_work_is_a_query_that_thinks_and_documents_if_they_are_read(
    tiny_build: Callable[..., Build], own_cache: Path, documents: bool
) -> None:
    build = tiny_build("llama", "portable")
    engine = Counting(vocabulary=build.manifest.decoder.vocabulary)
    race.race(build, {"fake": lambda: closing(engine)}, "", documents=documents)
    query = ([24], 10)
    once = [([96, 96], 1), query] if documents else [query]
    assert engine.started[: 3 * len(once)] == 3 * once


def test_documents_fit_in_the_context(
    tiny_build: Callable[..., Build], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = tiny_build("llama", "portable")
    monkeypatch.setattr(type(build.manifest.decoder), "context", 64)
    engine = Counting(vocabulary=build.manifest.decoder.vocabulary)
    race.race(build, {"fake": lambda: closing(engine)}, "", documents=True)
    assert engine.started[0] == ([63, 63], 1)


def test_a_pace_is_of_any_budget() -> None:
    pace = race.Pace(reading=0.5, step=0.25)
    assert [pace.seconds(budget) for budget in (0, 2, 400)] == [0.5, 1.0, 100.5]


def test_the_race_is_run_once(
    tiny_build: Callable[..., Build], monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    build = tiny_build("llama", "portable")
    contestants: dict[str, race.Opener] = {
        format: partial(_opened, build=build, format=format, device="cpu", threads=1)
        for format in FORMATS
    }

    def run(key: int, *, documents: bool = True, again: bool = False) -> dict[str, race.Pace]:
        return race.race(build, contestants, key, documents=documents, again=again)

    found = run(1)
    assert set(found) == set(FORMATS)
    assert all(0 < pace.step < pace.reading for pace in found.values())
    slow = race.Pace(reading=5.0, step=1.0)
    monkeypatch.setattr(race, "_time", lambda *_: slow)
    assert run(1) == found
    assert run(2) == {"onnx": slow, "gguf": slow}
    assert run(1, documents=False) == {"onnx": slow, "gguf": slow}
    assert run(1, again=True) == {"onnx": slow, "gguf": slow}


@pytest.mark.parametrize(
    ("asked", "reads"), [("auto", False), ("documents", False), ("everything", True)]
)
def test_documents_count_where_no_graph_of_their_own_reads_them(
    tiny_build: Callable[..., Build],
    monkeypatch: pytest.MonkeyPatch,
    asked: DocumentGraph,
    reads: bool,
) -> None:
    told: list[bool] = []

    def recorded(*given: object, documents: bool, again: bool) -> dict[str, race.Pace]:
        told.append(documents)
        return PACES

    monkeypatch.setattr(select, "race", recorded)
    build = tiny_build("llama", "portable")
    select.choose(build, device="cpu", documents=asked)
    monkeypatch.setattr(Build, "has_documents_graph", True)
    select.choose(build, device="cpu", documents=asked)
    assert told == [True, reads]


def test_the_faster_engine_is_that_of_the_budget(
    tiny_build: Callable[..., Build], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "race", lambda *_, **__: PACES)
    build = tiny_build("llama", "portable")
    assert build.manifest.contract.budget == 4
    expected: dict[int | None, Format] = {0: "onnx", 3: "onnx", 16: "gguf", None: "onnx"}
    for asked, format in expected.items():
        assert select.choose(build, device="cpu", budget=asked).format == format
        with Encoder.load(build.path, device="cpu", budget=asked) as encoder:
            assert encoder.info.engine == format
    reason = select.choose(build, device="cpu", budget=16).reason
    assert "budget of 16: onnx 4.200 s, gguf 3.600 s" in reason
    with pytest.raises(InputError, match="budget must be 0 or more tokens, not -1"):
        select.choose(build, device="cpu", budget=-1)
