"""Float weights as published, read a slab of rows at a time.

A checkpoint is never held whole: `Checkpoint.rows` reads and converts what is asked for.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from t1_edge.build import Decoder, Source, sha256_file
from t1_edge.cache import MODELS, cache_dir
from t1_edge.errors import CacheError, CheckpointError

Float32Array = NDArray[np.float32]

SLAB_ROWS: Final = 8192
"""Rows of an embedding or a head that are in memory at once."""

PULLED: Final = "model.gguf"
"""What `t1-edge pull` calls the file in a checkpoint's directory."""


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
    def source(self) -> Source:
        """Where the weights come from."""

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weights as they are stored, before they are converted."""


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


def hash_of(path: Path) -> str:
    """Hex sha256 of one of a checkpoint's files.

    Raises:
        CheckpointError: If it cannot be read.
    """
    try:
        return sha256_file(path)
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror}") from e


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
