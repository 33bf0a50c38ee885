"""A GGUF file as a checkpoint: any block format, dequantized row by row."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from t1_edge.build import Decoder, Source
from t1_edge.errors import CheckpointError
from t1_edge_export.bars import Bars, no_bars
from t1_edge_export.checkpoint import Origin, check_nothing_left
from t1_edge_export.decoder import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    TensorSpec,
    checked_decoder,
    layer_name,
    tensors,
)
from t1_edge_export.gguf_file import open_gguf
from t1_edge_export.gguf_tokenizer import GGUFTokenizer, tokenizer_json
from t1_edge_export.hashing import hash_files

Float32Array = NDArray[np.float32]

VOCABULARY: Final = "t1_edge.vocabulary"
"""Key: rows of embedding and head that are the model's. Behind them a build has padding."""

PARTS: Final[Mapping[str, str]] = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Hugging Face's name of a block's tensor to GGUF's."""


def gguf_names(decoder: Decoder) -> dict[str, str]:
    """Hugging Face's name of every tensor of a decoder to GGUF's."""
    names = {EMBEDDING: "token_embd.weight", FINAL_NORM: "output_norm.weight"}
    for layer in range(decoder.layers):
        for part, name in PARTS.items():
            names[layer_name(layer, part)] = f"blk.{layer}.{name}.weight"
    return names | {HEAD: "output.weight"}


def rotated_heads(name: str, decoder: Decoder) -> int:
    """How many heads of a tensor llama.cpp keeps in another row order; 0 if it does not.

    Its Llama rotates neighbouring pairs of rows where Hugging Face's rotates the halves of a head.
    """
    if decoder.family != "llama":
        return 0
    heads = {"q_proj": decoder.heads, "k_proj": decoder.kv_heads}
    return next((n for part, n in heads.items() if name.endswith(f"{part}.weight")), 0)


class GGUFCheckpoint:
    """A GGUF file. See `t1_edge_export.checkpoint.Checkpoint`.

    Args:
        path: The file.

    Raises:
        CheckpointError: If it is not a whole GGUF of a known architecture.
        MissingExtraError: If the gguf package is not installed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sha256 = ""
        file = open_gguf(path)
        self._keys, self._tensors = file.keys, file.tensors
        self._decoder = self._read_decoder()
        self._names = gguf_names(self._decoder)
        specs = {self._names[spec.name]: spec for spec in tensors(self._decoder)}
        for spec in specs.values():
            self._check_shape(spec)
        check_nothing_left(self._tensors.keys() - specs.keys(), path)

    @property
    def decoder(self) -> Decoder:
        """The shape of the model."""
        return self._decoder

    @cached_property
    def tokenizer(self) -> str:
        """The text of a tokenizer.json, rebuilt from the file's tokens and merges."""
        model = self._field("tokenizer.ggml.model")
        if model != "gpt2":
            raise CheckpointError(f"{self._path}: its tokenizer is a {model!r}; known is 'gpt2'")
        keys = {"pre": "pre", "tokens": "tokens", "token_types": "token_type", "merges": "merges"}
        found = {part: self._field(f"tokenizer.ggml.{key}") for part, key in keys.items()}
        try:
            return tokenizer_json(msgspec.convert(found, GGUFTokenizer))
        except (msgspec.ValidationError, CheckpointError) as e:
            raise CheckpointError(f"{self._path}: {e}") from e

    @cached_property
    def origin(self) -> Origin:
        """What the file says of itself."""
        parts = [self._field(f"general.{key}", "") for key in ("organization", "name")]
        stored = self._tensors[self._names[layer_name(0, "mlp.down_proj")]].kind_name
        floats = stored in ("F32", "F16", "BF16")
        return Origin(
            id="/".join(str(part) for part in parts if part) or self._path.stem,
            licence=str(self._field("general.license", "unknown")),
            note="" if floats else f"The checkpoint was {stored} already, and was dequantized.",
        )

    @property
    def stored_bytes(self) -> int:
        """Bytes of the tensors, in their block formats."""
        return sum(tensor.size for tensor in self._tensors.values())

    def source(self, bars: Bars = no_bars) -> Source:
        """Where the weights come from; the hash is the file's."""
        if not self._sha256:
            [self._sha256] = hash_files([self._path], self._decoder, bars)
        return self.origin.hashed(self._sha256)

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        """Rows [start, stop) of a tensor, dequantized, in Hugging Face's order."""
        tensor = self._tensors.get(self._names.get(name, name))
        if tensor is None:
            raise CheckpointError(f"{self._path} has no tensor {name}")
        heads = rotated_heads(name, self._decoder)
        if not heads:
            return tensor.rows(start, stop)
        order = stored_rows(heads, tensor.shape[0])[start:stop]
        first = int(order.min())
        weights: Float32Array = tensor.rows(first, int(order.max()) + 1)[order - first]
        return weights

    def _read_decoder(self) -> Decoder:
        family = self._field("general.architecture")
        if family not in ("llama", "qwen3"):
            raise CheckpointError(f"{self._path} is a {family!r}; known are 'llama' and 'qwen3'")
        self._refuse_other_rope(family)
        try:
            return checked_decoder(self._read_shape(family), str(self._path))
        except TypeError as e:  # of arithmetic on what is no number
            raise CheckpointError(f"{self._path} is damaged: {e}") from e

    def _read_shape(self, family: str) -> dict[str, Any]:
        """What `Decoder` wants to know, by its names, as the file has it."""

        def get(key: str, *default: Any) -> Any:
            return self._field(f"{family}.{key}", *default)

        heads, hidden = get("attention.head_count"), get("embedding_length")
        if not isinstance(heads, int) or heads < 1:
            raise CheckpointError(f"{self._path}: attention.head_count is {heads!r}")
        head_dim = get("attention.key_length", hidden // heads)
        if get("rope.dimension_count", head_dim) != head_dim:
            raise CheckpointError(f"{self._path} rotates a part of each head, which is not written")
        return {
            "family": family,
            "hidden": hidden,
            "layers": get("block_count"),
            "heads": heads,
            "kv_heads": get("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "intermediate": get("feed_forward_length"),
            "vocabulary": self._field(VOCABULARY, len(self._field("tokenizer.ggml.tokens"))),
            "positions": get("context_length"),
            "rope_theta": get("rope.freq_base", 10000.0),
            "norm_epsilon": get("attention.layer_norm_rms_epsilon"),
            "tied": "output.weight" not in self._tensors,
        }

    def _refuse_other_rope(self, family: str) -> None:
        """A factor without a type scales linearly; it once had another name."""
        kind = self._field(f"{family}.rope.scaling.type", "none")
        keys = (f"{family}.rope.scaling.factor", f"{family}.rope.scale_linear")
        scaled = any(self._field(key, 1.0) not in (0.0, 1.0) for key in keys)
        if kind != "none" or scaled or "rope_freqs.weight" in self._tensors:
            raise CheckpointError(f"{self._path} asks for rope scaling; only plain rope is written")

    def _field(self, key: str, *default: Any) -> Any:
        found = self._keys.get(key, *default)
        if found is None:
            raise CheckpointError(f"{self._path} has no {key!r}: it is not a decoder's GGUF")
        return found

    def _check_shape(self, spec: TensorSpec) -> None:
        name = self._names[spec.name]
        if name not in self._tensors:
            raise CheckpointError(f"{self._path} has no tensor {name}")
        found, due = self._tensors[name].shape, spec.shape
        if VOCABULARY in self._keys and spec.role in ("embedding", "head"):
            due = (self.decoder.padded_vocabulary, *due[1:])
        if found != due:
            raise CheckpointError(f"{self._path}: {name} is {found}, must be {due}")


def stored_rows(heads: int, rows: int, *, inverse: bool = False) -> NDArray[np.int64]:
    """Which stored row each of Hugging Face's rows is, int64 [rows]; see `rotated_heads`.

    Args:
        heads: Heads whose rows are reordered; 0 for a tensor that is stored as it is.
        rows: Rows of the tensor.
        inverse: Which of Hugging Face's rows each stored row is, instead.
    """
    if not heads:
        return np.arange(rows)
    halves = (heads, 2, -1) if inverse else (heads, -1, 2)
    return np.arange(rows).reshape(halves).swapaxes(1, 2).reshape(-1)
