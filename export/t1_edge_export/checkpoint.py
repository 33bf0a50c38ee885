"""Float weights as published, read a slab of rows at a time.

A checkpoint is never held whole: `Checkpoint.rows` reads and converts what is asked for.
"""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from t1_edge.build import Decoder, Source
from t1_edge.cache import MODELS, cache_dir
from t1_edge.errors import CacheError, CheckpointError
from t1_edge_export.bars import Bars, no_bars

Float32Array = NDArray[np.float32]

SLAB_ROWS: Final = 8192
"""Rows of an embedding or a head that are in memory at once."""

PULLED: Final = "model.gguf"
"""What `t1-edge pull` calls the file in a checkpoint's directory."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a checkpoint says of itself: a `Source` but for the hash, which takes all its bytes.

    Attributes:
        id: Name of the checkpoint, as its publisher spells it.
        revision: Commit on the Hugging Face hub; empty if it came from elsewhere.
        licence: SPDX identifier, or "unknown".
        note: What a reader should know of these weights.
    """

    id: str
    revision: str = ""
    licence: str = "unknown"
    note: str = ""

    def hashed(self, sha256: str) -> Source:
        """With the hash, where a manifest wants it."""
        return Source(sha256=sha256, **asdict(self))


class Weights(Protocol):
    """Rows of tensors: of a checkpoint, or of files that are read back."""

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        """Rows [start, stop) of a tensor, by its Hugging Face name.

        Returns:
            float32 [stop - start, in] of a matrix, [stop - start] of a norm.

        Raises:
            CheckpointError: If the tensor is missing, has another shape than the decoder says,
                or holds a value that is not finite.
        """


class Checkpoint(Weights, Protocol):
    """Float weights, the decoder's shape, and the tokenizer that goes with them."""

    @property
    def decoder(self) -> Decoder:
        """The shape of the model."""

    @property
    def tokenizer(self) -> str:
        """The text of a tokenizer.json (the format of the `tokenizers` library)."""

    @property
    def origin(self) -> Origin:
        """What it says of itself; no weight is read for it."""

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weights as they are stored, before they are converted."""

    def source(self, bars: Bars = no_bars) -> Source:
        """Where the weights come from; the first time all of their bytes are hashed.

        Args:
            bars: Shows how far that is.

        Raises:
            CheckpointError: If a file cannot be read.
        """


class Rows(Protocol):
    """See `Weights.rows`."""

    def __call__(self, name: str, start: int, stop: int) -> Float32Array:
        """Rows [start, stop) of a tensor."""


class Derived:
    """A checkpoint made of another: what is not given is the other's.

    Args:
        base: The other.
        rows: Reads rows, as `Weights.rows`.
        decoder: The shape.
        tokenizer: The text of a tokenizer.json.
        origin: What it says of itself; together with `source`.
        source: Where its weights come from, as `Checkpoint.source`.
    """

    def __init__(
        self,
        base: Checkpoint,
        *,
        rows: Rows | None = None,
        decoder: Decoder | None = None,
        tokenizer: str | None = None,
        origin: Origin | None = None,
        source: Callable[[Bars], Source] | None = None,
    ) -> None:
        self._base, self._tokenizer = base, tokenizer
        self._source = source or base.source
        self.rows = rows or base.rows
        self.decoder = decoder or base.decoder
        self.origin = origin or base.origin
        self.stored_bytes = base.stored_bytes

    @property
    def tokenizer(self) -> str:
        """The text of tokenizer.json, which the base reads once it is asked."""
        return self._base.tokenizer if self._tokenizer is None else self._tokenizer

    def source(self, bars: Bars = no_bars) -> Source:
        """See `Checkpoint.source`."""
        return self._source(bars)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a Hugging Face folder or a GGUF file.

    Raises:
        CheckpointError: If it is neither, or is damaged.
    """
    from t1_edge_export.gguf_checkpoint import GGUFCheckpoint
    from t1_edge_export.hf_checkpoint import HuggingFaceCheckpoint

    if path.is_dir():
        return HuggingFaceCheckpoint(path)
    if path.suffix == ".gguf" and path.is_file():
        return GGUFCheckpoint(path)
    raise CheckpointError(
        f"{path} is no checkpoint: give a Hugging Face folder (config.json, safetensors, "
        "tokenizer.json) or a .gguf file"
    )


def find_checkpoint(name_or_path: str) -> Path:
    """The path of a checkpoint: as given, or by the name it was pulled under.

    Raises:
        CacheError: If there is neither.
    """
    path = Path(name_or_path)
    if os.path.exists(path):  # false for a path that is too long, where Path raises
        return path
    if name_or_path in MODELS:
        raise CacheError(
            f"{name_or_path!r} is no checkpoint, but a model that comes with t1-edge as a build: "
            f"t1-edge pull {name_or_path}"
        )
    pulled = cache_dir() / "checkpoints" / path / PULLED
    if len(path.parts) == 1 and os.path.isfile(pulled):
        return pulled
    raise CacheError(
        f"no checkpoint {name_or_path!r}: no such file or folder, and no such name in the cache; "
        "bring one that has a name with: t1-edge pull NAME"
    )


def bare_name(name: str) -> str:
    """A model's name by which others may know it, too: "mret1" of "ForwardAILabs/MRE-T1".

    Owner or folders, letters' case, and punctuation are left out.
    """
    return re.sub(r"[\W_]", "", Path(name).name).lower()


def check_finite(weights: Float32Array, name: str, path: Path) -> None:
    """Whether the weights of a tensor are numbers.

    Raises:
        CheckpointError: If one is NaN or infinite.
    """
    if not np.isfinite(weights).all():
        raise CheckpointError(
            f"{path} is damaged: {name} holds weights that are NaN or infinite; fetch it again, or "
            "give another checkpoint"
        )


def check_nothing_left(names: Iterable[str], path: Path) -> None:
    """Whether a decoder's tensors are all that there are: a bias left out gives other vectors.

    Args:
        names: Tensors of the checkpoint that the decoder has no use for.
        path: The checkpoint.

    Raises:
        CheckpointError: If there is one.
    """
    first = min(names, default=None)
    if first is not None:
        raise CheckpointError(
            f"{path} has a tensor {first!r}, which its architecture does not use: it is another "
            "model than it says, and would give other vectors without it"
        )
