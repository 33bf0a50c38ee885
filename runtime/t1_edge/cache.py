"""Where t1-edge keeps what it pulled and exported.

Under the user's cache directory, or under `T1_EDGE_CACHE` where that is set:
`checkpoints/NAME/` holds float weights, `builds/NAME/` builds that the user exported,
`models/NAME/` those of models that come with t1-edge, `vectors/` the bench's document vectors,
`checked/` notes which build was self-tested on which engine, `probed/`, `races/`, `twins/` and
`amx/` what engines were found to do here, `queries.sqlite` keeps vectors and thoughts of queries.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import platformdirs

from t1_edge.build import MANIFEST
from t1_edge.errors import CacheError

MODELS: Final = ("nano",)
"""Models that come with t1-edge; no other build can have their names in the cache."""

QUERIES: Final = "queries.sqlite"

_LONGEST_NAME: Final = 200
"""Bytes: what file systems allow, less what staging puts around a name."""


Found = TypeVar("Found")


def cache_dir() -> Path:
    """The root of the cache; it may not exist yet."""
    chosen = os.environ.get("T1_EDGE_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("t1-edge")


def cache_obstacle() -> str:
    """What keeps the cache from being written, found by writing; "" if nothing does."""
    root = cache_dir()
    try:
        root.mkdir(parents=True, exist_ok=True)
        for folder in (root, *(path for path in root.iterdir() if path.is_dir())):
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(4096))
    except OSError as e:
        return str(e)
    return ""


def build_dir(name: str) -> Path:
    """Where a user's build of this name belongs, whether it exists or not.

    Raises:
        CacheError: If the name could lead out of the cache, is none that a file can have, or
            belongs to a model that comes with t1-edge.
    """
    if name in MODELS:
        raise CacheError(
            f"{name!r} is a model that comes with t1-edge: give the build another name"
        )
    return cache_dir() / "builds" / _plain(name)


def model_dir(name: str) -> Path:
    """Where the build of one of `MODELS` belongs, whether it exists or not."""
    return cache_dir() / "models" / name


def checkpoint_dir(name: str) -> Path:
    """Where the checkpoint of this name belongs, whether it exists or not.

    Raises:
        CacheError: As `build_dir`.
    """
    return cache_dir() / "checkpoints" / _plain(name)


def _plain(name: str) -> str:
    hidden = name.startswith(".")  # "." and ".." too; builds in the making begin so
    if not name or hidden or set(name) & set("/\\\0") or len(name.encode()) > _LONGEST_NAME:
        raise CacheError(
            f"{name[:80]!r} cannot be a name in the cache: give one without slashes that does not "
            f"begin with a dot, of at most {_LONGEST_NAME} bytes"
        )
    return name


def find_build(name_or_path: str | Path) -> Path:
    """The directory of a build given by its path or by its name in the cache.

    Raises:
        CacheError: If there is neither.
    """
    path = Path(name_or_path)
    if os.path.isfile(path / MANIFEST):  # false for a path that is too long, where Path raises
        return path
    name = str(name_or_path)
    kept = cache_dir() / ("models" if name in MODELS else "builds")
    if len(path.parts) == 1 and os.path.isfile(kept / path / MANIFEST):
        return kept / path
    raise CacheError(f"no build {name!r}: {_instead(path, name)}")


def remembered(
    kind: str,
    key: object,
    type: type[Found],
    find: Callable[[], Found],
    *,
    again: bool = False,
    keep: Callable[[Found], bool] = lambda found: True,
) -> Found:
    """What was found for a key at an earlier time, or what is found now.

    Args:
        kind: The directory in the cache.
        key: All that it depends on; JSON is made of it.
        type: Of what is found, likewise.
        find: Called if the cache does not know; what it raises is raised.
        again: Call it in any case.
        keep: Whether to keep what it found; if not, what was kept before is forgotten.
    """
    name = hashlib.sha256(msgspec.json.encode(key)).hexdigest()[:32]
    path = cache_dir() / kind / f"{name}.json"
    if not again:
        with suppress(OSError, msgspec.MsgspecError):
            return msgspec.json.decode(path.read_bytes(), type=type)
    found = find()
    # A cache that cannot be written costs another time, nothing else.
    with suppress(OSError):
        if keep(found):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(msgspec.json.encode(found))
        else:
            path.unlink(missing_ok=True)
    return found


def cached_builds() -> list[Path]:
    """Directories of the builds in the cache, those that come with t1-edge among them."""
    return sorted(manifest.parent for manifest in cache_dir().glob(f"*/*/{MANIFEST}"))


def _instead(path: Path, name: str) -> str:
    """What somebody who asked for a build may have meant."""
    if name in MODELS:
        return f"it is not in the cache yet ({cache_dir()}); bring it with: t1-edge pull {name}"
    if len(path.parts) == 1 and os.path.isdir(cache_dir() / "checkpoints" / path):
        return f"it is a checkpoint; make a build of it with: t1-edge export {name}"
    found = sorted(at.name for at in cached_builds())
    listed = f"builds there are: {', '.join(found)}" if found else "there is none yet"
    return (
        f"neither a directory with a {MANIFEST} nor a name in {cache_dir()}; {listed}; `t1-edge "
        "pull nano` brings the model that comes with t1-edge, `t1-edge export` makes others"
    )
