"""Which of two engines is the faster one: what they do for it, and that it is kept."""

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from t1_edge.build import Build, Format
from t1_edge.engines import race, select
from t1_edge.engines.fake import FakeEngine, FakeSession
from t1_edge.engines.select import DocumentGraph, _opened
from t1_edge.errors import InputError

FORMATS: tuple[Format, ...] = ("onnx", "gguf")


class Counting(FakeEngine):
    """Notes which rows it is asked for, and how far they may grow."""

    def __init__(self, *, vocabulary: int) -> None:
        super().__init__(vocabulary=vocabulary)
        self.started: list[tuple[list[int], int]] = []

    def start(self, rows: Sequence[Sequence[int]], *, room: int) -> FakeSession:
        self.started.append(([len(row) for row in rows], room))
        return super().start(rows, room=room)


@pytest.mark.parametrize(("budget", "written"), [(0, 0), (5, 5), (400, 16)])
@pytest.mark.parametrize("documents", [True, False])
def test_the_work_is_a_query_of_the_budget_and_documents_if_they_are_read(
    tiny_build: Callable[..., Build], own_cache: Path, budget: int, written: int, documents: bool
) -> None:
    build = tiny_build("llama", "portable")
    engine = Counting(vocabulary=build.manifest.decoder.vocabulary)
    race.race(build, {"fake": lambda: closing(engine)}, "", budget=budget, documents=documents)
    query = ([24], written + 2)
    once = [([96, 96], 1), query] if documents else [query]
    assert engine.started[: 3 * len(once)] == 3 * once


def test_the_race_is_run_once(
    tiny_build: Callable[..., Build], monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    build = tiny_build("llama", "portable")
    contestants: dict[str, race.Opener] = {
        format: partial(_opened, build=build, format=format, device="cpu", threads=1)
        for format in FORMATS
    }

    def run(key: int, *, budget: int = 0, again: bool = False) -> dict[str, float]:
        return race.race(build, contestants, key, budget=budget, documents=True, again=again)

    seconds = run(1)
    assert set(seconds) == set(FORMATS)
    assert min(seconds.values()) > 0
    monkeypatch.setattr(race, "_time", lambda *_: 5.0)
    assert run(1) == seconds
    assert run(2) == {"onnx": 5.0, "gguf": 5.0}
    assert run(1, budget=2) == {"onnx": 5.0, "gguf": 5.0}
    assert run(1, again=True) == {"onnx": 5.0, "gguf": 5.0}


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

    def recorded(*given: object, documents: bool, **more: object) -> dict[str, float]:
        told.append(documents)
        return {"onnx": 1.0, "gguf": 2.0}

    monkeypatch.setattr(select, "race", recorded)
    build = tiny_build("llama", "portable")
    select.choose(build, device="cpu", documents=asked)
    monkeypatch.setattr(Build, "has_documents_graph", True)
    select.choose(build, device="cpu", documents=asked)
    assert told == [True, reads]


def test_queries_think_as_they_will_be_asked_to(
    tiny_build: Callable[..., Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_thinker(*given: object, budget: int, **more: object) -> dict[str, float]:
        return {"onnx": 1.0 + budget, "gguf": 2.0}

    monkeypatch.setattr(select, "race", slow_thinker)
    build = tiny_build("llama", "portable")
    assert build.manifest.contract.budget > 1
    chosen = {asked: select.choose(build, device="cpu", budget=asked) for asked in (0, 16, None)}
    assert {asked: found.format for asked, found in chosen.items()} == {
        0: "onnx",
        16: "gguf",
        None: "gguf",
    }
    assert "thoughts of 16 tokens" in chosen[16].reason
    with pytest.raises(InputError, match="budget must be 0 or more tokens, not -1"):
        select.choose(build, device="cpu", budget=-1)
