"""Where t1-edge keeps what it pulled and exported.

Under the user's cache directory, or under `T1_EDGE_CACHE` where that is set:
`checkpoints/NAME/` holds float weights, `builds/NAME/` holds builds, `vectors/` the bench's
document vectors, `checked/` notes which build was self-tested on which engine.
"""

import os
from pathlib import Path

import platformdirs

from t1_edge.build import MANIFEST
from t1_edge.errors import CacheError


def cache_dir() -> Path:
    """The root of the cache; it may not exist yet."""
    chosen = os.environ.get("T1_EDGE_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("t1-edge")


def build_dir(name: str) -> Path:
    """Where the build of this name belongs, whether it exists or not."""
    return cache_dir() / "builds" / name


def checkpoint_dir(name: str) -> Path:
    """Where the checkpoint of this name belongs, whether it exists or not."""
    return cache_dir() / "checkpoints" / name


def find_build(name_or_path: str | Path) -> Path:
    """The directory of a build given by its path or by its name in the cache.

    Raises:
        CacheError: If there is neither.
    """
    path = Path(name_or_path)
    if (path / MANIFEST).is_file():
        return path
    named = build_dir(str(name_or_path))
    if len(path.parts) == 1 and (named / MANIFEST).is_file():
        return named
    raise CacheError(
        f"no build {str(name_or_path)!r}: neither a directory with a {MANIFEST} nor one of "
        f"{named.parent}; make it with: t1-edge pull NAME && t1-edge export NAME"
    )
