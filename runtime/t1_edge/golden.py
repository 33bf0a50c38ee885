"""Golden vectors: what the float reference said, against what an engine says here.

golden.npz holds whole rows, `emb_token` included, so that checking them needs no tokenizer, no
thinking and no luck: the same tokens go in, and the vector must come out. It is read without
pickle. Its arrays: `tokens` int32 [total], `offsets` int64 [n + 1] into them, `vectors` float32
[n, d], `texts` and `thoughts` str [n], `roles` str [n] ("query" or "document").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from t1_edge.batching import batches
from t1_edge.build import GOLDEN, Build
from t1_edge.cache import remembered
from t1_edge.engines.base import Engine, Float32Array
from t1_edge.errors import BuildError, EngineError
from t1_edge.machine import kernels
from t1_edge.vectors import cosines, normalised

_AT_LOAD: Final = 4
"""Rows that are checked when a build first meets an engine; `t1-edge verify` checks all."""


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Golden rows and the float reference's vectors for them.

    Attributes:
        rows: Token ids, each ending in `emb_token`.
        vectors: float32 [n, d], L2-normalised.
        texts: The texts that the rows were made of.
        thoughts: The thoughts in them, as text; "" for documents.
        roles: "query" or "document".
    """

    rows: Sequence[Sequence[int]]
    vectors: Float32Array
    texts: Sequence[str]
    thoughts: Sequence[str]
    roles: Sequence[str]

    def save(self, path: Path) -> None:
        """Write golden.npz."""
        offsets = np.cumsum([0, *map(len, self.rows)], dtype=np.int64)
        np.savez(
            path,
            tokens=np.concatenate([np.array(row, np.int32) for row in self.rows]),
            offsets=offsets,
            vectors=self.vectors,
            texts=np.array(self.texts),
            thoughts=np.array(self.thoughts),
            roles=np.array(self.roles),
        )

    def documents(self) -> "Golden":
        """The rows of documents alone."""
        at = [row for row, role in enumerate(self.roles) if role == "document"]
        return Golden(
            rows=[self.rows[row] for row in at],
            vectors=self.vectors[at],
            texts=[self.texts[row] for row in at],
            thoughts=[self.thoughts[row] for row in at],
            roles=[self.roles[row] for row in at],
        )

    @classmethod
    def load(cls, path: Path) -> "Golden":
        """Read golden.npz.

        Raises:
            BuildError: If it is damaged.
        """
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                rows = [row.tolist() for row in np.split(file["tokens"], file["offsets"][1:-1])]
                if not rows or min(map(len, rows)) < 2 or len(file["vectors"]) != len(rows):
                    raise ValueError("its rows and vectors do not belong together")
                return cls(
                    rows=rows,
                    vectors=file["vectors"],
                    texts=file["texts"].tolist(),
                    thoughts=file["thoughts"].tolist(),
                    roles=file["roles"].tolist(),
                )
        except Exception as e:  # a damaged archive raises whatever its decompressor raises
            raise BuildError(f"{path} is damaged: {e}") from e


def run_rows(engine: Engine, rows: Sequence[Sequence[int]]) -> Float32Array:
    """Unit vectors float32 [n, d] of whole rows, `emb_token` being the last token of each.

    Raises:
        InputError: If a token is not one of the engine's.
        EngineError: If the engine fails, or a vector is not one.
    """
    hidden: dict[int, Float32Array] = {}
    for batch in batches([len(row) for row in rows], engine):
        with engine.start([rows[at][:-1] for at in batch], room=1) as session:
            hidden |= zip(batch, session.peek(rows[0][-1]), strict=True)
    return normalised(np.stack([hidden[at] for at in range(len(rows))]), engine.info)


def check(build: Build, engine: Engine, *, rows: int | None = None) -> float:
    """Compare an engine with a build's golden vectors.

    Args:
        build: The build.
        engine: Opened on it.
        rows: How many golden rows to run; all if None. What reads documents runs documents alone.

    Returns:
        The worst cosine found.

    Raises:
        BuildError: If golden.npz is damaged, or of another model.
        EngineError: If the cosine is below the build's floor for the format, or not a number.
    """
    info = engine.info
    golden = Golden.load(build.file(GOLDEN))
    if info.graph == "documents":
        golden = golden.documents()
    floor = build.manifest.verification.floor(info.engine, info.graph)
    if golden.vectors.shape[1:] != (build.manifest.decoder.hidden,):
        raise BuildError(f"{build.file(GOLDEN)} holds vectors of another model")
    worst = float(cosines(run_rows(engine, golden.rows[:rows]), golden.vectors[:rows]).min())
    if not worst >= floor:
        raise EngineError(
            f"{build.path} does not give its golden vectors with {info.library} on {info.device}: "
            f"worst cosine {worst:.4f}, must be {floor:.4f}; run t1-edge verify on it, and "
            "export it again if its files are damaged"
        )
    return worst


def check_once(build: Build, engine: Engine) -> None:
    """Check a few golden rows the first time that these files meet this engine and device.

    Raises:
        BuildError: See `check`.
        EngineError: See `check`.
    """
    info = engine.info
    where = str(build.path.resolve())
    key = [build.state(), where, info.library, info.device, info.graph, kernels()]
    remembered("checked", key, float, lambda: check(build, engine, rows=_AT_LOAD))
