"""What of a build is whole, so that an export that was cut off can go on.

JSON lines: first what was asked for, then a line for each tensor whose rows are on the disk. A line
that was cut off itself counts for nothing.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from t1_edge.errors import ExportError


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    request: str


def _request(path: Path) -> str | None:
    """Whose a journal is; None if there is none, or it is damaged."""
    try:
        first, _, _ = path.read_bytes().partition(b"\n")
        return msgspec.json.decode(first, type=_Request).request
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _anothers(path: Path) -> ExportError:
    return ExportError(
        f"what was left in {path.parent} is of another checkpoint, of other options or of another "
        "t1-edge: leave --resume out to start over"
    )


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
    def open(cls, path: Path, request: str) -> "Journal":
        """Read a journal, or begin one.

        Args:
            path: The file.
            request: Changes with everything that decides the bytes of the build.

        Raises:
            ExportError: If it is another request's, or cannot be read or written.
        """
        try:
            whole, *_ = (path.read_bytes() if path.exists() else b"").rpartition(b"\n")
            lines = whole.splitlines()
            if not lines:
                path.write_bytes(msgspec.json.encode(_Request(request=request)) + b"\n")
                return cls(path, {})
            os.truncate(path, len(whole) + 1)
        except OSError as e:
            raise ExportError(f"cannot write {path}: {e.strerror}") from e
        try:
            found = msgspec.json.decode(lines[0], type=_Request)
            written = [msgspec.json.decode(line, type=Written) for line in lines[1:]]
        except (msgspec.MsgspecError, UnicodeDecodeError) as e:
            raise ExportError(f"{path} is damaged: {e}; leave --resume out to start over") from e
        if found.request != request:
            raise _anothers(path)
        return cls(path, {line.tensor: line.sha256 for line in written})

    @staticmethod
    def is_of(path: Path, request: str) -> bool:
        """Whether a journal is there, and a request's."""
        return _request(path) == request

    @staticmethod
    def check_beginning(path: Path, beginning: str) -> None:
        """Whether a journal may be a request's of which only the beginning is known.

        Args:
            path: The file; anything may be begun where there is none.
            beginning: Of the request.

        Raises:
            ExportError: If it is another request's.
        """
        found = _request(path)
        if found is not None and not found.startswith(beginning):
            raise _anothers(path)

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
