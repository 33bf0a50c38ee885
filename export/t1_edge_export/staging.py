"""A directory that becomes visible whole, by one rename, or not at all; and can be gone on with.

Beside the destination stands `.NAME.partial/` meanwhile: `build/`, which will be renamed,
`journal.jsonl`, which says what of it is whole, `scratch/`, and `lock`, held by the process that
writes.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from t1_edge.build import MANIFEST
from t1_edge.errors import ExportError, KilledError
from t1_edge_export.journal import NOTHING, Asked, Journal
from t1_edge_export.room import nearest_folder

_BUILD: Final = "build"
_SCRATCH: Final = "scratch"
_REPLACED: Final = "replaced"
_JOURNAL: Final = "journal.jsonl"
_LOCK: Final = "lock"


@dataclass(frozen=True, kw_only=True)
class Staging:
    """Where an export writes.

    Attributes:
        directory: What will be published.
        scratch: For what is of no use once the export has ended; empty at first.
        journal: What of it is whole.
    """

    directory: Path
    scratch: Path
    journal: Journal


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A destination to which this process alone writes; `claimed` gives one.

    Attributes:
        destination: What the directory will be called.
        partial: Beside it, where it is written before it is published.
    """

    destination: Path
    partial: Path


@contextmanager
def claimed(destination: Path, *, force: bool = False) -> Iterator[Claim]:
    """Keep other processes from a destination, for work that takes long and `staged` after it.

    Where it ends in an error, folders that were made for it are gone.

    Args:
        destination: What the directory will be called.
        force: Replace a build that stands there, and nothing else.

    Raises:
        ExportError: If the destination exists without `force` or is no build, another process is
            writing it, or something cannot be written.
    """
    destination = _named(destination)
    check_free(destination, force)
    partial = _partial(destination)
    with _no_empty_folders(destination.parent), closing(_lock(destination)):
        try:
            _put_back(partial / _REPLACED, destination)
            check_free(destination, force)
            yield Claim(destination=destination, partial=partial)
        except OSError as e:
            raise ExportError(f"nothing was published at {destination}: {e}") from e
        finally:
            with suppress(OSError):  # nothing was staged, or nothing is left of it
                if os.listdir(partial) == [_LOCK]:
                    shutil.rmtree(partial)


@contextmanager
def staged(
    claim: Claim,
    *,
    resume: bool | None = False,
    asked: Asked = NOTHING,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Staging]:
    """A staging directory beside the destination, published when the block ends without an error.

    An interruption (Ctrl-C, a kill of this process or of an engine's, a power cut) leaves it for
    `resume`; an error removes it. A build that is replaced is untouched until the very end, and
    comes back if the last rename fails.

    Args:
        claim: Where to.
        resume: Go on with what an interrupted attempt left; without one, begin. If None, go on
            where it is of the same, and start over where not.
        asked: What decides the bytes of the build.
        say: Called with a line of talk.

    Raises:
        ExportError: If what is to be resumed is of something else.
        OSError: If something cannot be written.
    """
    partial = claim.partial
    if not (Journal.is_of(partial / _JOURNAL, asked) if resume is None else resume):
        _clear(partial, say)
    journal = _begin(partial, asked)
    how = "the same again" if resume is None else "--resume"
    with _removed(partial, how, say):
        yield Staging(directory=partial / _BUILD, scratch=partial / _SCRATCH, journal=journal)
        _publish(partial, claim.destination)


@contextmanager
def _no_empty_folders(parent: Path) -> Iterator[None]:
    """Remove folders that were missing, and are empty after an error."""
    missing = [path for path in (parent, *parent.parents) if not os.path.exists(path)]
    try:
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        raise


def _begin(partial: Path, asked: Asked) -> Journal:
    """The journal of a staging directory; one that was there already outlives a refusal."""
    found = (partial / _JOURNAL).exists()
    try:
        if not (partial / _BUILD).exists():  # it was published, and this not yet cleared away
            (partial / _JOURNAL).unlink(missing_ok=True)
        for folder in (_SCRATCH, _REPLACED):
            shutil.rmtree(partial / folder, ignore_errors=True)
        for folder in (_BUILD, _SCRATCH):
            (partial / folder).mkdir(exist_ok=True)
        return Journal.open(partial / _JOURNAL, asked)
    except BaseException:
        if not found:
            shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def _removed(partial: Path, how: str, say: Callable[[str], None]) -> Iterator[None]:
    """Remove a staging directory at the end, but for an interruption: say how to go on."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, KilledError):
        say(f"interrupted: {how} goes on with what is in {partial}")
        raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(partial, ignore_errors=True)


def _lock(destination: Path) -> IO[bytes]:
    """Become the one that writes a staging directory, which is made if it is missing."""
    partial = _partial(destination)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = (partial / _LOCK).open("a+b", buffering=0)
    except OSError as e:
        with suppress(OSError):  # one that is not empty stays
            partial.rmdir()
        raise ExportError(f"cannot write to {partial.parent}: {e.strerror}") from e
    try:
        _take(lock, destination)
    except ExportError:
        lock.close()
        raise
    with suppress(OSError):  # a full disk: it is locked all the same, and the next write says so
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n".encode())
    return lock


def _take(lock: IO[bytes], destination: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        lock.seek(0)
        holder = lock.read().decode(errors="replace").strip() or "unknown"
        raise ExportError(
            f"process {holder} is writing {destination} already: wait for it, or end it"
        ) from e


def check_unlocked(destination: Path) -> None:
    """Whether no other process is writing a build there: asked before work that takes long.

    Raises:
        ExportError: If one is; with its pid.
    """
    destination = _named(destination)
    with suppress(OSError), (_partial(destination) / _LOCK).open("r+b") as file:
        _take(file, destination)


def check_left(destination: Path, options: Callable[[], str]) -> None:
    """Whether what an interrupted export left there can be gone on with: asked before long work.

    Args:
        destination: Where the build will be.
        options: Gives `Asked.options`, if something was left.

    Raises:
        ExportError: If it is of other options, or its journal is damaged.
    """
    partial = _partial(_named(destination))
    if (partial / _BUILD).exists():  # or it was published, and the rest not yet cleared away
        Journal.check_options(partial / _JOURNAL, options)


def _named(destination: Path) -> Path:
    """A destination with a name and a parent, which "." lacks."""
    return Path(os.path.abspath(destination))


def _partial(destination: Path) -> Path:
    """Where a build is written before it is published."""
    return destination.with_name(f".{destination.name}.partial")


def _clear(partial: Path, say: Callable[[str], None]) -> None:
    if (partial / _JOURNAL).exists():
        say(f"{partial} was left by an export that was interrupted; starting over")
    (partial / _JOURNAL).unlink(missing_ok=True)
    shutil.rmtree(partial / _BUILD, ignore_errors=True)


def check_free(destination: Path, force: bool) -> None:
    """Whether a build may be published somewhere.

    Args:
        destination: Where.
        force: Whether a build that stands there may be replaced.

    Raises:
        ExportError: If not, or if nothing can be written there at all.
    """
    parent = nearest_folder(destination)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ExportError(
            f"cannot write to {parent}: it is read-only for you; give another --output"
        )
    if not os.path.lexists(destination):
        return
    if not os.path.isfile(destination / MANIFEST):
        raise ExportError(f"{destination} exists and is no build: it will not be replaced")
    if not force:
        raise ExportError(f"{destination} exists already; --force replaces it")


def _publish(partial: Path, destination: Path) -> None:
    staging = partial / _BUILD
    for path in staging.iterdir():
        _flush(path)
    _flush(staging)
    if destination.exists():
        _swap(staging, destination, partial / _REPLACED)
    else:
        staging.rename(destination)
    _flush(destination.parent)


def _swap(staging: Path, destination: Path, old: Path) -> None:
    """Put the staging directory in the place of an existing one, which is kept until then."""
    destination.rename(old)
    try:
        staging.rename(destination)
    except BaseException:  # an interruption too must leave the old one in its place
        _put_back(old, destination)
        raise


def _put_back(old: Path, destination: Path) -> None:
    """Undo half a swap: of one that was killed there, too."""
    if old.exists() and not destination.exists():
        old.rename(destination)


def _flush(path: Path) -> None:
    """Bring a file or directory to the disk, so that a power cut leaves nothing half there."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
