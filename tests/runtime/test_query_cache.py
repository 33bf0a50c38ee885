"""Queries that are asked again: given as they were, kept within bounds, and never in the way."""

import multiprocessing
import sqlite3
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from t1_edge.build import Build
from t1_edge.cache import QUERIES
from t1_edge.contract import Codec
from t1_edge.encoder import Encoder
from t1_edge.engines.fake import FakeEngine, FakeSession
from t1_edge.query_cache import CachedQuery, QueryCache, key_of
from t1_edge.thinking import Settle
from t1_edge.tokenization import TextTokenizer
from tiny import TINY_CONTRACT


def _query(number: int) -> CachedQuery:
    vector = np.full(4, number, np.float32)
    return CachedQuery.of(vector, (number, number + 1), "closed")


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    cache = QueryCache(tmp_path / "new" / "queries.sqlite")
    key = key_of("a", 1)
    assert cache.get(key) is None
    cache.put(key, _query(3))
    found = cache.get(key)
    assert found == _query(3)
    assert found is not None
    np.testing.assert_array_equal(found.array(), np.full(4, 3, np.float32))
    cache.close()
    assert QueryCache(tmp_path / "new" / "queries.sqlite").get(key) == found
    mode = (tmp_path / "new" / "queries.sqlite").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_keys_are_told_apart() -> None:
    keys = {key_of(*parts) for parts in (("a", 1), ("a", "1"), ("a1",), ("a", 1, None))}
    assert len(keys) == 4


def test_of_too_many_those_go_that_were_not_asked_for(tmp_path: Path) -> None:
    cache = QueryCache(tmp_path / "queries.sqlite", most=16)
    for number in range(16):
        cache.put(key_of(number), _query(number))
    assert cache.get(key_of(0)) is not None  # asked for: now the last to go
    cache.put(key_of(16), _query(16))
    left = [number for number in range(17) if cache.get(key_of(number)) is not None]
    assert left == [0, *range(4, 17)]


@pytest.mark.parametrize("damage", [b"no database at all, and longer than a header" * 9, b""])
def test_a_damaged_file_is_begun_anew(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "queries.sqlite"
    path.write_bytes(damage)
    cache = QueryCache(path)
    assert cache.get(key_of(1)) is None
    cache.put(key_of(1), _query(1))
    assert cache.get(key_of(1)) == _query(1)


def test_a_damaged_row_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "queries.sqlite"
    cache = QueryCache(path)
    cache.put(key_of(1), _query(1))
    with sqlite3.connect(path) as file:
        file.execute("UPDATE queries SET found = ?", (b"\xc1",))
    file.close()
    assert cache.get(key_of(1)) is None


def test_a_place_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = QueryCache(tmp_path / "file" / "queries.sqlite")
    cache.put(key_of(1), _query(1))
    assert cache.get(key_of(1)) is None


def test_a_file_that_others_hold_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "queries.sqlite"
    cache = QueryCache(path)
    cache.put(key_of(1), _query(1))
    held = sqlite3.connect(path)
    held.execute("BEGIN EXCLUSIVE")
    cache.put(key_of(2), _query(2))
    held.rollback()
    held.close()
    assert cache.get(key_of(2)) is None
    assert cache.get(key_of(1)) == _query(1)


def _put_many(path: Path, first: int) -> None:
    cache = QueryCache(path)
    for number in range(first, first + 40):
        cache.put(key_of(number), _query(number))


def test_threads_and_processes_share_it(tmp_path: Path) -> None:
    path = tmp_path / "queries.sqlite"
    cache = QueryCache(path)
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
    known = [number for number, query in enumerate(found) if query == _query(number)]
    assert len(known) > 90  # of 100; one that waited too long for another was not kept
    assert all(query is None or query == _query(n) for n, query in enumerate(found))


class _Counting(FakeEngine):
    sessions = 0

    def start(self, rows: Sequence[Sequence[int]], *, room: int) -> FakeSession:
        self.sessions += 1
        return super().start(rows, room=room)


def _encoder(tokenizer: TextTokenizer, path: Path, **changed: object) -> tuple[Encoder, _Counting]:
    engine = _Counting(vocabulary=400)
    codec = Codec(msgspec.structs.replace(TINY_CONTRACT, **changed), tokenizer)
    cache = QueryCache(path / QUERIES)
    return Encoder(codec, engine, fingerprint="f", hidden=32, cache=cache), engine


@pytest.fixture
def tokenizer(tiny_build: Callable[..., Build]) -> TextTokenizer:
    return TextTokenizer.from_file(tiny_build("llama", "portable").file("tokenizer.json"))


def _same(one: NDArray[np.float32], other: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(one, other)


def test_a_query_that_is_asked_again_is_known(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    encoder, engine = _encoder(tokenizer, tmp_path)
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
    _same(_encoder(tokenizer, tmp_path)[0].encode_query("x", budget=3).vector, first[0].vector)


def test_what_changes_a_vector_is_another_query(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    encoder, _ = _encoder(tokenizer, tmp_path)
    encoder.encode_query("x", budget=3)
    assert not encoder.encode_query("x", budget=2).cached
    assert not encoder.encode_query("X", budget=3).cached
    assert not encoder.encode_query("x", budget=3, settle=Settle(cosine=0.9)).cached
    assert not encoder.encode_query("x", thought="y").cached
    for changed in ({"distinct": True}, {"query": "Other: {text}"}, {"stop": ()}):
        assert not _encoder(tokenizer, tmp_path, **changed)[0].encode_query("x", budget=3).cached
    assert encoder.encode_query("x", budget=3).cached


def test_a_thought_that_a_deadline_cut_is_not_kept(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    encoder, _ = _encoder(tokenizer, tmp_path)
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
