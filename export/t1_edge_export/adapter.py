"""A LoRA adapter, merged into a checkpoint as its rows are read: W + scale * B A (2106.09685).

The folder is what PEFT writes: adapter_config.json and adapter_model.safetensors. Plain LoRA on
linear layers is read, and whole rows of the embedding (PEFT's `trainable_token_indices`), which a
trained `<emb_token>` needs.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from t1_edge.build import Decoder, Source
from t1_edge.errors import CheckpointError
from t1_edge_export.bars import Bars
from t1_edge_export.checkpoint import (
    Checkpoint,
    Derived,
    Origin,
    bare_name,
    check_finite,
    check_nothing_left,
)
from t1_edge_export.decoder import EMBEDDING, HEAD, tensors
from t1_edge_export.hashing import hash_of
from t1_edge_export.safetensors_file import StoredTensor, read_tensors

Float32Array = NDArray[np.float32]

WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"

_PREFIX: Final = "base_model.model."
_MODULES: Final[Mapping[str, str]] = {"embed_tokens": EMBEDDING, "lm_head": HEAD}
"""What `trainable_token_indices` calls them, and the tensor. A tied head is the embedding."""


_Ids = Annotated[list[int], msgspec.Meta(min_length=1)]

_KEEPS_BASE: Final = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin an adapter that leave the base as it is; others, such as PiSSA, move it."""


class _Config(msgspec.Struct, frozen=True):
    """What of PEFT's LoraConfig decides the merged weights."""

    peft_type: str
    r: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
    lora_alpha: Annotated[float, msgspec.Meta(ge=0, le=1e6)]
    base_model_name_or_path: str | None = None
    use_rslora: bool = False
    use_dora: bool = False
    bias: str = "none"
    fan_in_fan_out: bool = False
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    init_lora_weights: bool | str = True
    use_qalora: bool = False
    alora_invocation_tokens: list[int] | None = None
    layer_replication: list[tuple[int, int]] | None = None
    modules_to_save: list[str] | None = None
    trainable_token_indices: dict[str, _Ids] | _Ids | None = None

    @property
    def unsupported(self) -> str | None:
        """The first setting that is not read, or None."""
        if self.peft_type != "LORA":
            return f"peft_type {self.peft_type}"
        plain = {"use_dora": False, "bias": "none", "fan_in_fan_out": False}
        plain |= {"rank_pattern": {}, "alpha_pattern": {}, "use_qalora": False}
        found = [name for name, value in plain.items() if getattr(self, name) != value]
        lists = ("modules_to_save", "alora_invocation_tokens", "layer_replication")
        found += [name for name in lists if getattr(self, name)]
        if self.init_lora_weights not in _KEEPS_BASE:
            found.append(f"init_lora_weights {self.init_lora_weights!r}")
        return next(iter(found), None)

    @property
    def scale(self) -> float:
        """Factor of B A; rank-stabilised adapters divide by the root (2312.03732)."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)

    @property
    def tokens(self) -> "dict[str, _Ids]":
        """Ids whose rows the adapter brings, by module."""
        found = self.trainable_token_indices or {}
        return found if isinstance(found, dict) else {"embed_tokens": found}


@dataclass(frozen=True, kw_only=True)
class _Factors:
    """A tensor's B, float32 [rows, r], times the scale, and its A, float32 [r, columns]."""

    b: Float32Array
    a: Float32Array


def with_adapter(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    name: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> Checkpoint:
    """A checkpoint whose weights are merged with an adapter's.

    Args:
        checkpoint: What the adapter was trained on, with the tokens that it brings rows for.
        folder: As PEFT's `save_pretrained` writes it.
        name: What the checkpoint is called beside its own name for itself: its folder's, often.
        say: Called with a line of talk if the adapter names a base that is called otherwise, which
            may be the folder's name on another machine.

    Raises:
        CheckpointError: If the folder is no adapter of this checkpoint, or asks for what is not
            read: DoRA, biases, patterns of ranks, whole modules.
    """
    config = _read_config(folder / CONFIG)
    if not os.path.isfile(folder / WEIGHTS):
        raise CheckpointError(
            f"{folder} has no {WEIGHTS}; of PEFT's formats this one alone is read, since opening "
            "a pickle runs its code"
        )
    stored = read_tensors(folder / WEIGHTS)
    if not stored:
        raise CheckpointError(f"{folder / WEIGHTS} holds no tensor")
    base = config.base_model_name_or_path
    if base and bare_name(base) not in map(bare_name, (checkpoint.origin.id, name)):
        say(
            f"{folder / CONFIG} names the base {base!r}, and this checkpoint is "
            f"{checkpoint.origin.id!r}: make sure that they are one, an adapter fits no other"
        )
    merged = _Merged(
        base=checkpoint,
        folder=folder,
        factors=_factors(checkpoint.decoder, stored, config, folder),
        new_rows=_new_rows(checkpoint.decoder, stored, config, folder),
    )
    used = {key for name in merged.factors for key in _keys(name)}
    used |= {_rows_key(module) for module in config.tokens}
    check_nothing_left(stored.keys() - used, folder / WEIGHTS)
    return Derived(checkpoint, rows=merged.rows, origin=merged.origin, source=merged.source)


def merged_sha256(base: str, folder: Path) -> str:
    """What the source of a merged checkpoint is known by.

    Args:
        base: The base's own sha256.
        folder: The adapter's.
    """
    own = [hash_of(folder / name) for name in (WEIGHTS, CONFIG)]
    return hashlib.sha256("".join([base, *own]).encode()).hexdigest()


def _read_config(path: Path) -> _Config:
    try:
        config = msgspec.json.decode(path.read_bytes(), type=_Config)
    except OSError as e:
        raise CheckpointError(
            f"{path.parent} is no adapter: cannot read {path.name}: {e.strerror}"
        ) from e
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise CheckpointError(f"{path} is damaged: {e}") from e
    if config.unsupported:
        raise CheckpointError(f"{path} sets {config.unsupported}, which t1-edge does not merge")
    return config


def _keys(name: str) -> tuple[str, str]:
    """PEFT's names of A and B for a tensor."""
    module = _PREFIX + name.removesuffix(".weight")
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def _factors(
    decoder: Decoder, stored: Mapping[str, StoredTensor], config: _Config, folder: Path
) -> dict[str, _Factors]:
    found = {}
    for spec in tensors(decoder):
        key_a, key_b = _keys(spec.name)
        if spec.role != "linear" or not (key_a in stored or key_b in stored):
            continue
        rows, columns = spec.shape
        found[spec.name] = _Factors(
            a=_read(stored, key_a, (config.r, columns), folder),
            b=_read(stored, key_b, (rows, config.r), folder) * np.float32(config.scale),
        )
    return found


def _rows_key(module: str) -> str:
    """PEFT's name of the rows that replace some of a module's: the rows themselves."""
    tensor = _MODULES.get(module, module).removesuffix(".weight")
    return f"{_PREFIX}{tensor}.token_adapter.trainable_tokens_delta"


def _new_rows(
    decoder: Decoder, stored: Mapping[str, StoredTensor], config: _Config, folder: Path
) -> dict[str, dict[int, Float32Array]]:
    found = {}
    for module, tokens in config.tokens.items():
        if module not in _MODULES:
            raise CheckpointError(f"{folder} brings rows of {module!r}; known are the embedding's")
        if not 0 <= min(tokens) <= max(tokens) < decoder.vocabulary:
            raise CheckpointError(
                f"{folder} brings a row for token {max(tokens)}, the embedding has "
                f"{decoder.vocabulary}: it was trained with other tokens, or on another checkpoint"
            )
        rows = _read(stored, _rows_key(module), (len(tokens), decoder.hidden), folder)
        found[_MODULES[module]] = dict(zip(tokens, rows, strict=True))
    return found


def _read(
    stored: Mapping[str, StoredTensor], key: str, shape: tuple[int, int], folder: Path
) -> Float32Array:
    if key not in stored:
        raise CheckpointError(f"{folder / WEIGHTS} has no tensor {key}")
    if stored[key].shape != shape:
        raise CheckpointError(
            f"{folder / WEIGHTS}: {key} is {stored[key].shape}, the checkpoint wants {shape}: "
            "it is an adapter of another model"
        )
    return stored[key].rows(0, shape[0])


@dataclass(frozen=True, kw_only=True)
class _Merged:
    """See `with_adapter`; `factors` by tensor, `new_rows` by tensor and token id."""

    base: Checkpoint
    folder: Path
    factors: Mapping[str, _Factors]
    new_rows: Mapping[str, Mapping[int, Float32Array]]

    @property
    def origin(self) -> Origin:
        """The base's name, and the adapter's."""
        base = self.base.origin
        return replace(base, id=f"{base.id} + {self.folder.resolve().name}")

    def source(self, bars: Bars) -> Source:
        """The hash is over both hashes."""
        digest = merged_sha256(self.base.source(bars).sha256, self.folder)
        return self.origin.hashed(digest)

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        weights = self.base.rows(name, start, stop)
        if name in self.factors:
            factors = self.factors[name]
            with np.errstate(over="ignore"):  # looked for below
                weights = weights + factors.b[start:stop] @ factors.a
            check_finite(weights, name, self.folder)
        for token, row in self.new_rows.get(name, {}).items():
            if start <= token < stop:
                weights[token - start] = row
        return weights
