"""Where a checkpoint comes from: a path, the name of one that was pulled, or the hub."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from t1_edge_export.checkpoint import Checkpoint, find_checkpoint, open_checkpoint
from t1_edge_export.hub import PREFIX, Repository, fetch, parse_repository


@dataclass(frozen=True, kw_only=True)
class FoundCheckpoint:
    """A checkpoint that is on this machine.

    Attributes:
        path: A Hugging Face folder, or a GGUF.
        name: What a build of it is called if nobody says otherwise.
        repository: What it is on the hub, its revision a commit; None if it is not from there.
    """

    path: Path
    name: str
    repository: Repository | None = None

    def open(self) -> Checkpoint:
        """Open it.

        Raises:
            CheckpointError: If it is damaged, or of a kind that is not exported.
        """
        from t1_edge_export.hf_checkpoint import HuggingFaceCheckpoint

        if self.repository is None:
            return open_checkpoint(self.path)
        return HuggingFaceCheckpoint(
            self.path, id=self.repository.id, revision=self.repository.revision
        )


def find_source(
    text: str,
    say: Callable[[str], None] = lambda text: None,
    *,
    look: Callable[[Path, str], object] = lambda folder, id: None,
) -> FoundCheckpoint:
    """Find a checkpoint, or bring it from the hub.

    Args:
        text: A path, the name of a checkpoint that was pulled, or hf:owner/name[@revision].
        say: Called with a line of talk when there is something to wait for.
        look: Called before weights are fetched from the hub; see `fetch`.

    Raises:
        CacheError: If there is neither such a path nor such a name.
        CheckpointError: If it is no name on the hub, or of a model that is not exported.
        DownloadError: If the hub or the network does not give it.
    """
    if not text.startswith(PREFIX):
        path = find_checkpoint(text)
        return FoundCheckpoint(path=path, name=_name(text))
    repository = parse_repository(text)
    folder = fetch(repository, say, look=look)
    return FoundCheckpoint(
        path=folder,
        name=repository.id.partition("/")[2],
        repository=Repository(id=repository.id, revision=folder.name),
    )


def _name(text: str) -> str:
    """A file's name less its suffix, a folder's whole: Qwen3-0.6B has none."""
    path = Path(os.path.abspath(text))
    return path.stem if path.suffix == ".gguf" else path.name
