"""What of a build is whole, so that an export that was cut off can go on.

JSON lines: first what was asked for, then a line for each tensor whose rows are on the disk. A line
that was cut off itself counts for nothing.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec

from t1_edge.errors import ExportError


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What decides the bytes of a build.

    Attributes:
        options: Digest of the checkpoint, of what to make of it, and of what makes it.
        calibration: What the rounding was fitted to, which may take minutes to be known.
    """

    options: str
    calibration: str


NOTHING: Final = Asked(options="", calibration="")
"""Of what is never gone on with."""


class Written(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tensor that is on the disk.

    Attributes:
        tensor: Its name.
        sha256: Of its codes and scales.
    """

    tensor: str
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Journal:
    """The journal of one export. `open` makes one.

    Args:
        path: The file.
        written: Digests of tensors that are whole, by name.
    """

    def __init__(self, path: Path, written: Mapping[str, str]) -> None:
        self._path = path
        self.written = dict(written)

    @classmethod
    def open(cls, path: Path, asked: Asked) -> "Journal":
        """Read a journal, or begin one.

        Args:
            path: The file.
            asked: What decides the bytes of the build.

        Raises:
            ExportError: If it is of something else, is damaged, or cannot be read or written.
        """
        found = _read(path)
        try:
            if found is None:
                path.write_bytes(msgspec.json.encode(asked) + b"\n")
                return cls(path, {})
            os.truncate(path, found.whole)
        except OSError as e:
            raise ExportError(f"cannot write {path}: {e.strerror}") from e
        if found.asked != asked:
            raise _of_something_else(path)
        return cls(path, {line.tensor: line.sha256 for line in found.written})

    @staticmethod
    def is_of(path: Path, asked: Asked) -> bool:
        """Whether a journal is there, whole, and of what is asked for."""
        try:
            found = _read(path)
        except ExportError:
            return False
        return found is not None and found.asked == asked

    @staticmethod
    def check_options(path: Path, options: Callable[[], str]) -> None:
        """Whether a journal may be gone on with, before it is known what the rounding is fitted to.

        Args:
            path: The file; where there is none, nothing is gone on with.
            options: Gives `Asked.options`, if there is a journal.

        Raises:
            ExportError: If it is of other options, is damaged, or cannot be read.
        """
        found = _read(path)
        if found is not None and found.asked.options != options():
            raise _of_something_else(path)

    def note(self, tensors: Sequence[Written]) -> None:
        """Add tensors whose rows have just been brought to the disk.

        Raises:
            ExportError: If the disk is full.
        """
        self.written |= {line.tensor: line.sha256 for line in tensors}
        try:
            with self._path.open("ab") as file:
                file.writelines(msgspec.json.encode(line) + b"\n" for line in tensors)
                file.flush()
                os.fsync(file.fileno())
        except OSError as e:
            raise ExportError(f"cannot write {self._path}: {e.strerror}") from e


@dataclass(frozen=True, kw_only=True)
class _Read:
    """A journal's lines, and how many bytes of it are whole lines."""

    asked: Asked
    written: Sequence[Written]
    whole: int


def _read(path: Path) -> _Read | None:
    """What a journal says; None if nothing was written yet.

    Raises:
        ExportError: If it is damaged, or cannot be read.
    """
    try:
        whole, end, _ = (path.read_bytes() if path.exists() else b"").rpartition(b"\n")
    except OSError as e:
        raise ExportError(f"cannot read {path}: {e.strerror}") from e
    if not end:
        return None
    try:
        first, *rest = whole.split(b"\n")
        return _Read(
            asked=msgspec.json.decode(first, type=Asked),
            written=[msgspec.json.decode(line, type=Written) for line in rest],
            whole=len(whole) + len(end),
        )
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise ExportError(f"{path} is damaged: {e}; leave --resume out to start over") from e


def _of_something_else(path: Path) -> ExportError:
    return ExportError(
        f"what was left in {path.parent} is of another checkpoint, of other options or of another "
        "t1-edge: leave --resume out to start over"
    )
