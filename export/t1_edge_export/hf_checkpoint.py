"""A Hugging Face folder as a checkpoint: config.json, tokenizer.json, safetensors."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from t1_edge.build import TOKENIZER, Decoder, Source
from t1_edge.errors import CheckpointError
from t1_edge_export.bars import Bars, no_bars
from t1_edge_export.checkpoint import Origin, check_nothing_left
from t1_edge_export.decoder import EMBEDDING, HEAD, TensorSpec, decoder_from_config, tensors
from t1_edge_export.hashing import hash_files
from t1_edge_export.safetensors_file import StoredTensor, read_tensors

Float32Array = NDArray[np.float32]

CONFIG: Final = "config.json"
CARD: Final = "README.md"
INDEX: Final = "model.safetensors.index.json"
_SINGLE: Final = "model.safetensors"


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


class HuggingFaceCheckpoint:
    """A folder of safetensors. See `t1_edge_export.checkpoint.Checkpoint`.

    Args:
        folder: Holds config.json, tokenizer.json and the weights in one or several shards.
        id: What its publisher calls it; what config.json says, or the folder's name, if empty.
        revision: The commit that the folder is of; empty if nobody knows.

    Raises:
        CheckpointError: If something is missing, damaged or not supported.
    """

    def __init__(self, folder: Path, *, id: str = "", revision: str = "") -> None:
        self._folder = folder
        self._revision = revision
        self._decoder = read_decoder(folder)
        self._id = id or _published_name(_read_json(folder / CONFIG)) or folder.resolve().name
        self._shards = _find_shards(folder)
        self._sha256 = ""
        stored = _read_shards(self._shards)
        # An encoder that was saved without its head names its tensors from the decoder's own root.
        root = "model." if EMBEDDING.removeprefix("model.") in stored else ""
        self._stored = {k if k == HEAD else root + k: v for k, v in stored.items()}
        specs = {spec.name: spec for spec in tensors(self._decoder)}
        for spec in specs.values():
            self._check(spec)
        check_nothing_left((name for name in self._stored.keys() - specs if _matters(name)), folder)

    @property
    def decoder(self) -> Decoder:
        """The shape of the model."""
        return self._decoder

    @cached_property
    def tokenizer(self) -> str:
        """The text of tokenizer.json."""
        try:
            return (self._folder / TOKENIZER).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise CheckpointError(f"{self._folder} has no readable {TOKENIZER}: {e}") from e

    @cached_property
    def origin(self) -> Origin:
        """The folder's name for itself, and what its card says."""
        return Origin(id=self._id, revision=self._revision, licence=_licence(self._folder / CARD))

    @property
    def stored_bytes(self) -> int:
        """Bytes of the tensors in all shards."""
        return sum(tensor.size for tensor in self._stored.values())

    def source(self, bars: Bars = no_bars) -> Source:
        """Where the weights come from; the hash is over the shards' hashes."""
        if not self._sha256:
            hashes = "".join(hash_files(self._shards, self._decoder, bars))
            self._sha256 = hashlib.sha256(hashes.encode()).hexdigest()
        return self.origin.hashed(self._sha256)

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        """Rows [start, stop) of a tensor."""
        if name not in self._stored:
            raise CheckpointError(f"{self._folder} has no tensor {name}")
        return self._stored[name].rows(start, stop)

    def _check(self, spec: TensorSpec) -> None:
        if spec.name not in self._stored:
            raise CheckpointError(f"{self._folder} has no tensor {spec.name}")
        found = self._stored[spec.name]
        if found.shape != spec.shape:
            raise CheckpointError(
                f"{found.path}: {spec.name} is {found.shape}, config.json says {spec.shape}"
            )


def read_decoder(folder: Path) -> Decoder:
    """The shape of the model in a Hugging Face folder.

    Raises:
        CheckpointError: If it has no config.json that can be read, or of a model that is not
            supported.
    """
    if not os.path.isfile(folder / CONFIG):  # false where Path raises: a name that is too long
        held = sorted(path.name for path in folder.glob("*.gguf"))
        which = f", as {held[0]}, which lies there" if held else ""
        raise CheckpointError(
            f"{folder} is no Hugging Face folder: it has no config.json; give a folder with "
            f"config.json, safetensors and tokenizer.json, or a .gguf file{which}"
        )
    return decoder_from_config(_read_json(folder / CONFIG), str(folder / CONFIG))


def shard_names(folder: Path) -> list[str]:
    """The files of safetensors that a Hugging Face folder should hold, whether it does or not.

    Raises:
        CheckpointError: If it has an index of shards that is damaged, or leads to other files.
    """
    if os.path.isfile(folder / _SINGLE) or not os.path.isfile(folder / INDEX):
        return [_SINGLE]
    try:
        index = msgspec.convert(_read_json(folder / INDEX), _Index)
    except msgspec.ValidationError as e:
        raise CheckpointError(f"{folder / INDEX} is no index of shards: {e}") from e
    names = sorted(set(index.weight_map.values()))
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{folder / INDEX} names a file outside the folder: {name!r}")
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise CheckpointError(f"{folder / INDEX} names {name!r}, which is no safetensors file")
    return names


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror}") from e
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise CheckpointError(f"{path} is damaged: {e}; fetch it again") from e


def _find_shards(folder: Path) -> list[Path]:
    names = shard_names(folder)
    if not (os.path.isfile(folder / _SINGLE) or os.path.isfile(folder / INDEX)):
        pickles = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        why = "; pickles are refused, since opening one runs its code" if pickles else ""
        raise CheckpointError(f"{folder} has no {_SINGLE} and no {INDEX}{why}")
    for name in names:
        if not os.path.isfile(folder / name):
            raise CheckpointError(f"{folder} lacks the shard {name!r} that {INDEX} names; fetch it")
    return [folder / name for name in names]


def _read_shards(shards: Sequence[Path]) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for shard in shards:
        stored = read_tensors(shard)
        twice = min(stored.keys() & found.keys(), default=None)
        if twice is not None:
            raise CheckpointError(f"{twice!r} stands in {found[twice].path} and again in {shard}")
        found |= stored
    return found


def _matters(name: str) -> bool:
    """Whether a tensor that is not read could change a vector.

    A tied head is the embedding again, and older files store the rotary frequencies.
    """
    return name != HEAD and not name.endswith("rotary_emb.inv_freq")


def _published_name(config: Mapping[str, Any]) -> str | None:
    """The name on the hub. A path of the machine that saved the model says nothing to others."""
    name = config.get("_name_or_path")
    known = isinstance(name, str) and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name)
    return name if known else None


def _licence(card: Path) -> str:
    """The licence that a model card's front matter, the lines between two "---", names."""
    try:
        text = card.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    named = re.search(r"^license:[ \t]*(\S+)", front[1], re.MULTILINE) if front else None
    return named[1].strip("\"'") if named else "unknown"
