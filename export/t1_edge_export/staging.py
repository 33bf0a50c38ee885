"""A directory that becomes visible whole, by one rename, or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from t1_edge.build import MANIFEST
from t1_edge.errors import ExportError


@contextmanager
def staged(destination: Path, *, force: bool) -> Iterator[Path]:
    """A staging directory beside the destination, published when the block ends without an error.

    Args:
        destination: What the directory will be called.
        force: Replace a build that stands there, and nothing else. It is untouched until the very
            end, and comes back if the last rename fails.

    Yields:
        The staging directory, empty. It is removed if the block raises.

    Raises:
        ExportError: If the destination exists without `force` or is no build, or something cannot
            be written.
    """
    destination = Path(os.path.abspath(destination))  # "." has neither a name nor a parent
    _check_free(destination, force)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{destination.name}.partial-"
        staging = Path(tempfile.mkdtemp(prefix=prefix, dir=destination.parent))
    except OSError as e:
        raise ExportError(f"cannot write to {destination.parent}: {e.strerror}") from e
    try:
        yield staging
        _publish(staging, destination)
    except OSError as e:
        raise ExportError(f"nothing was published at {destination}: {e}") from e
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_free(destination: Path, force: bool) -> None:
    if not os.path.lexists(destination):
        return
    if not (destination / MANIFEST).is_file():
        raise ExportError(f"{destination} exists and is no build: it will not be replaced")
    if not force:
        raise ExportError(f"{destination} exists already; --force replaces it")


def _publish(staging: Path, destination: Path) -> None:
    staging.chmod(0o755)  # mkdtemp's directories are private
    for path in staging.iterdir():
        _flush(path)
    _flush(staging)
    if destination.exists():
        _swap(staging, destination)
    else:
        staging.rename(destination)


def _swap(staging: Path, destination: Path) -> None:
    """Put the staging directory in the place of an existing one."""
    old = destination.with_name(f".{destination.name}.replaced-{os.getpid()}")
    destination.rename(old)
    try:
        staging.rename(destination)
    except BaseException:  # an interruption too must leave the old one in its place
        old.rename(destination)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    """Bring a file or directory to the disk, so that a power cut leaves nothing half there."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a directory
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
