"""Document vectors, kept on disk by what they depend on: a second budget costs only queries."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from t1_edge import __version__
from t1_edge.build import SCHEMA
from t1_edge.cache import cache_dir
from t1_edge.encoder import Encoder
from t1_edge_bench.datasets import Dataset

_DAMAGED: Final = (OSError, ValueError, EOFError)


def document_vectors(
    encoder: Encoder,
    dataset: Dataset,
    *,
    batch_size: int | None = None,
    say: Callable[[str], None],
    progress: Callable[[int], None],
) -> NDArray[np.float32]:
    """Vectors of a data set's documents, float32 [n, d], from the cache where they are in it.

    Documents over the build's limit are cut; how many is said when they are encoded.

    Args:
        encoder: What to encode with. Vectors of different engines are kept apart.
        dataset: Whose documents.
        batch_size: Most documents that run together; as many as run well if None.
        say: Called with a line of talk.
        progress: Called with the number of documents just done.
    """
    path = _path(encoder, dataset)
    if path.exists():
        found = _read(path, (len(dataset.documents), encoder.hidden))
        if found is not None:
            say(f"{len(found)} document vectors are in the cache")
            return found
        say(f"{path} is damaged; its vectors are computed again")
    texts = [document.text for document in dataset.documents]
    embedded = encoder.embed_documents(
        texts, truncate=True, batch_size=batch_size, progress=progress
    )
    cut = int(embedded.truncated.sum())
    rate = int(embedded.tokens.sum()) / max(embedded.seconds, 1e-9)
    say(f"{len(texts)} documents encoded at {rate:,.0f} tokens/s, {cut} of them cut to the limit")
    try:
        _write(path, embedded.vectors)
    except OSError as e:
        say(f"the vectors are not kept for another time: {path}: {e.strerror or e}")
    return embedded.vectors


def _path(encoder: Encoder, dataset: Dataset) -> Path:
    """Keyed by all that a vector depends on; engines and graphs round each in their own way."""
    info = encoder.read_by()
    ran = [__version__, str(SCHEMA), info.library, info.device, info.graph]
    key = "\0".join([encoder.fingerprint, *ran, dataset.digest()])
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    return cache_dir() / "vectors" / f"{dataset.name}-{name}.npy"


def _read(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    try:
        found = np.load(path, allow_pickle=False)
    except _DAMAGED:
        return None
    return found if found.shape == shape and found.dtype == np.float32 else None


def _write(path: Path, vectors: NDArray[np.float32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        try:
            np.save(file, vectors, allow_pickle=False)
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
