"""Queries' vectors and thoughts on disk: who asks again waits for nothing.

One SQLite file for all builds; one of another `user_version` is begun anew. A key is a hash of
everything that a query's vector comes from, the text included, so that no text is stored; thoughts
are. What cannot be read or written is computed as if there were no cache.
"""

import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import numpy as np

from t1_edge.engines.base import Float32Array
from t1_edge.thinking import StopReason

MOST_ROWS: Final = 4096
"""Queries that are kept, those last asked for: 10 MB of nano's, 42 MB of a 4B's."""

T = TypeVar("T")

_PATIENCE: Final = 0.2
"""Seconds to wait for another process."""

_VERSION: Final = 1

_PREPARE: Final = (
    "DROP TABLE IF EXISTS queries",
    "CREATE TABLE queries (key BLOB PRIMARY KEY, used INTEGER, found BLOB) WITHOUT ROWID",
    f"PRAGMA user_version = {_VERSION}",
)


class CachedQuery(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What is kept of a query.

    Attributes:
        vector: Bytes of float32 [d], little-endian.
        thought_tokens: As `t1_edge.results.QueryEmbedding` has them.
        stopped_by: Likewise.
    """

    vector: bytes
    thought_tokens: tuple[int, ...]
    stopped_by: StopReason

    @classmethod
    def of(
        cls, vector: Float32Array, thought_tokens: tuple[int, ...], stopped_by: StopReason
    ) -> "CachedQuery":
        """From a vector, float32 [d], and its thought."""
        raw = vector.astype("<f4").tobytes()
        return cls(vector=raw, thought_tokens=thought_tokens, stopped_by=stopped_by)

    def array(self, hidden: int) -> Float32Array | None:
        """The vector, float32 [hidden], if it is one."""
        if len(self.vector) != 4 * hidden:
            return None
        found = np.frombuffer(self.vector, "<f4").astype(np.float32)
        return found if np.isfinite(found).all() else None


def key_of(*parts: object) -> bytes:
    """A key for what these describe; `repr` must tell them apart."""
    return hashlib.sha256(repr(parts).encode()).digest()


class QueryCache:
    """A file of queries. Calls from several threads take turns, and so do processes.

    Once closed, and in a process that was forked, it knows and keeps nothing.

    Args:
        path: Of the file; made, with its folder, when it is first asked. One that is damaged is
            begun anew.
        most: Queries that are kept.
        patience: Seconds to wait for another process.
    """

    def __init__(self, path: Path, *, most: int = MOST_ROWS, patience: float = _PATIENCE) -> None:
        self._path = path
        self._most = most
        self._patience = patience
        self._turn = threading.Lock()
        self._closed = False
        self._process = os.getpid()  # SQLite's files do not survive a fork
        self._connection: sqlite3.Connection | None = None

    def get(self, key: bytes) -> CachedQuery | None:
        """What is kept under a key."""

        def look(file: sqlite3.Connection) -> bytes | None:
            row = file.execute("SELECT found FROM queries WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            with suppress(sqlite3.OperationalError):  # held by others, or read-only
                file.execute("UPDATE queries SET used = ? WHERE key = ?", (time.time_ns(), key))
            return bytes(row[0])

        found = self._do(look)
        with suppress(msgspec.MsgspecError):
            return None if found is None else msgspec.msgpack.decode(found, type=CachedQuery)
        return None

    def put(self, key: bytes, query: CachedQuery) -> None:
        """Keep a query; of too many, those go that were not asked for longest."""

        def keep(file: sqlite3.Connection) -> None:
            row = (key, time.time_ns(), msgspec.msgpack.encode(query))
            file.execute("INSERT OR REPLACE INTO queries VALUES (?, ?, ?)", row)
            [count] = file.execute("SELECT count(*) FROM queries").fetchone()
            if count > self._most:
                oldest = "SELECT key FROM queries ORDER BY used LIMIT ?"
                superfluous = (count - self._most * 7 // 8,)
                file.execute(f"DELETE FROM queries WHERE key IN ({oldest})", superfluous)

        self._do(keep)

    def close(self) -> None:
        """Close the file for good; in a forked process it is the parent's, and stays open."""
        if os.getpid() != self._process:
            return
        with self._turn:
            self._closed = True
            self._close()

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """Work on the file in one transaction; nothing if there is no working on it."""
        if os.getpid() != self._process:
            return None
        with self._turn:
            if self._closed:
                return None
            try:
                with self._opened() as file:
                    return work(file)
            except (sqlite3.OperationalError, OSError):  # held by others, full, read-only
                self._close()
            except sqlite3.DatabaseError:
                self._close()
                with suppress(OSError):
                    self._path.unlink()
            return None

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            connection = sqlite3.connect(
                self._path, timeout=self._patience, check_same_thread=False
            )
            self._connection = connection
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            if not _is_current(connection):
                self._prepare(connection)
        return self._connection

    @staticmethod
    def _prepare(connection: sqlite3.Connection) -> None:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            if not _is_current(connection):  # another process was faster
                for statement in _PREPARE:
                    connection.execute(statement)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _is_current(connection: sqlite3.Connection) -> bool:
    [version] = connection.execute("PRAGMA user_version").fetchone()
    return bool(version == _VERSION)
