"""Queries that are asked again: given as they were, kept within bounds, and never in the way."""

import multiprocessing
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from scripted import ScriptedEngine, scripted_encoder
from t1_edge.build import Build
from t1_edge.cache import QUERIES
from t1_edge.encoder import Encoder
from t1_edge.query_cache import CachedQuery, QueryCache, key_of
from t1_edge.thinking import Settle

Open = Callable[..., QueryCache]


@pytest.fixture
def open_cache() -> Iterator[Open]:
    """Opens caches, which are closed when the test ends."""
    with ExitStack() as stack:
        yield lambda *given, **more: stack.enter_context(closing(QueryCache(*given, **more)))


def _query(number: int) -> CachedQuery:
    vector = np.full(4, number, np.float32)
    return CachedQuery.of(vector, (number, number + 1), "closed")


def test_what_is_kept_comes_back(open_cache: Open, tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "new" / "queries.sqlite")
    key = key_of("a", 1)
    assert cache.get(key) is None
    cache.put(key, _query(3))
    found = cache.get(key)
    assert found == _query(3)
    assert found is not None
    np.testing.assert_array_equal(found.array(4), np.full(4, 3, np.float32))
    cache.close()
    assert open_cache(tmp_path / "new" / "queries.sqlite").get(key) == found
    mode = (tmp_path / "new" / "queries.sqlite").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_keys_are_told_apart() -> None:
    keys = {key_of(*parts) for parts in (("a", 1), ("a", "1"), ("a1",), ("a", 1, None))}
    assert len(keys) == 4


def test_of_too_many_those_go_that_were_not_asked_for(open_cache: Open, tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "queries.sqlite", most=16)
    for number in range(16):
        cache.put(key_of(number), _query(number))
    assert cache.get(key_of(0)) is not None  # asked for: now the last to go
    cache.put(key_of(16), _query(16))
    left = [number for number in range(17) if cache.get(key_of(number)) is not None]
    assert left == [0, *range(4, 17)]


@pytest.mark.parametrize("damage", [b"no database at all, and longer than a header" * 9, b""])
def test_a_damaged_file_is_begun_anew(open_cache: Open, tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "queries.sqlite"
    path.write_bytes(damage)
    cache = open_cache(path)
    assert cache.get(key_of(1)) is None
    cache.put(key_of(1), _query(1))
    assert cache.get(key_of(1)) == _query(1)


def test_the_file_has_a_version_and_a_layout(tmp_path: Path) -> None:
    path = tmp_path / "queries.sqlite"
    with closing(QueryCache(path)) as cache:
        cache.put(b"key", _query(1))
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA user_version").fetchone() == (1,)
        [(key, stored)] = file.execute("SELECT key, found FROM queries").fetchall()
        assert key == b"key"
        assert msgspec.msgpack.decode(stored) == [b"\0\0\x80?" * 4, [1, 2], "closed"]
        file.execute("PRAGMA user_version = 2")
    with closing(QueryCache(path)) as cache:  # another version's file is begun anew
        assert cache.get(b"key") is None
        cache.put(b"key", _query(1))
        assert cache.get(b"key") == _query(1)


@pytest.mark.parametrize("vector", [b"", b"\0" * 15, b"\0" * 12, b"\0\0\xc0\x7f" * 4])
def test_what_is_no_vector_is_none(vector: bytes) -> None:
    kept = CachedQuery(vector=vector, thought_tokens=(), stopped_by="closed")
    assert kept.array(4) is None


def test_a_damaged_row_is_nothing(open_cache: Open, tmp_path: Path) -> None:
    path = tmp_path / "queries.sqlite"
    cache = open_cache(path)
    cache.put(key_of(1), _query(1))
    with sqlite3.connect(path) as file:
        file.execute("UPDATE queries SET found = ?", (b"\xc1",))
    file.close()
    assert cache.get(key_of(1)) is None


def test_a_place_that_cannot_be_written_is_no_error(open_cache: Open, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = open_cache(tmp_path / "file" / "queries.sqlite")
    cache.put(key_of(1), _query(1))
    assert cache.get(key_of(1)) is None


def test_a_file_that_others_hold_is_no_error(open_cache: Open, tmp_path: Path) -> None:
    path = tmp_path / "queries.sqlite"
    cache = open_cache(path)
    cache.put(key_of(1), _query(1))
    held = sqlite3.connect(path)
    held.execute("BEGIN IMMEDIATE")
    cache.put(key_of(2), _query(2))
    assert cache.get(key_of(1)) == _query(1)  # reading needs nobody's leave
    held.rollback()
    held.close()
    assert cache.get(key_of(2)) is None
    assert cache.get(key_of(1)) == _query(1)


def _put_many(path: Path, first: int) -> None:
    with closing(QueryCache(path, patience=60)) as cache:
        for number in range(first, first + 40):
            cache.put(key_of(number), _query(number))


def test_threads_and_processes_share_it(open_cache: Open, tmp_path: Path) -> None:
    path = tmp_path / "queries.sqlite"
    cache = open_cache(path, patience=60)
    threads = [
        threading.Thread(target=cache.put, args=(key_of(number), _query(number)))
        for number in range(100, 120)
    ]
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_put_many, args=(path, first)) for first in (0, 40)]
    for process in processes:
        process.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        process.join()
    found = [cache.get(key_of(number)) for number in range(120)]
    assert found[:80] == [_query(number) for number in range(80)]
    assert found[100:] == [_query(number) for number in range(100, 120)]


def _encoder(path: Path, **changed: object) -> tuple[Encoder, ScriptedEngine]:
    return scripted_encoder(QueryCache(path / QUERIES), **changed)


def _same(one: NDArray[np.float32], other: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(one, other)


def test_a_query_that_is_asked_again_is_known(tmp_path: Path) -> None:
    encoder, engine = _encoder(tmp_path)
    first = encoder.encode_queries(["x", "y"], budget=3)
    assert not any(found.cached for found in first)
    asked = engine.sessions
    again = encoder.encode_queries(["y", "x"], budget=3)[::-1]
    assert engine.sessions == asked
    for one, other in zip(first, again, strict=True):
        assert other.cached
        assert other.timings.total == 0
        assert other.thought == one.thought
        assert (other.thought_tokens, other.stopped_by) == (one.thought_tokens, one.stopped_by)
        assert (other.truncated, other.prompt_tokens) == (one.truncated, one.prompt_tokens)
        _same(one.vector, other.vector)
    mixed = encoder.encode_queries(["new", "x"], budget=3)
    assert [found.cached for found in mixed] == [False, True]
    _same(mixed[1].vector, first[0].vector)
    encoder.close()
    _same(_encoder(tmp_path)[0].encode_query("x", budget=3).vector, first[0].vector)


def test_what_changes_a_vector_is_another_query(tmp_path: Path) -> None:
    encoder, _ = _encoder(tmp_path)
    encoder.encode_query("x", budget=3)
    assert not encoder.encode_query("x", budget=2).cached
    assert not encoder.encode_query("X", budget=3).cached
    assert not encoder.encode_query("x", budget=3, settle=Settle(cosine=0.9)).cached
    assert not encoder.encode_query("x", thought="y").cached
    changes: list[dict[str, Any]] = [
        {"distinct": True},
        {"query": "Other: {text}"},
        {"stop": ()},
        {"think_close": "<|im_start|>", "adds": ()},
        {"think_open": "<|im_start|>", "adds": ()},
    ]
    for changed in changes:
        assert not _encoder(tmp_path, **changed)[0].encode_query("x", budget=3).cached
    assert encoder.encode_query("x", budget=3).cached


def test_a_thought_that_a_deadline_cut_is_not_kept(tmp_path: Path) -> None:
    encoder, _ = _encoder(tmp_path)
    cut = encoder.encode_query("x", budget=4, deadline=0)
    assert cut.stopped_by == "deadline"
    whole = encoder.encode_query("x", budget=4)
    assert not whole.cached
    assert encoder.encode_query("x", budget=4, deadline=0).cached  # better than in time


def test_a_loaded_encoder_keeps_queries_unless_it_is_told_not_to(
    own_cache: Path, tiny_build: Callable[..., Build]
) -> None:
    build = tiny_build("llama", "float")
    with Encoder.load(build.path, cache=False) as encoder:
        encoder.encode_query("x")
        assert not (own_cache / QUERIES).exists()
    with Encoder.load(build.path) as encoder:
        first = encoder.encode_query("x")
    with Encoder.load(build.path) as encoder:
        again = encoder.encode_query("x")
    assert (first.cached, again.cached) == (False, True)
    _same(first.vector, again.vector)
