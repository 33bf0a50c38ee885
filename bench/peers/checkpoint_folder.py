"""A checkpoint as Hugging Face lays it out, for who reads nothing else."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

from t1_edge.build import TOKENIZER, Decoder
from t1_edge_export.decoder import TensorSpec, tensors

_SHARD_BYTES: Final = 2**31

_ARCHITECTURES: Final = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_BYTES: Final = {"bfloat16": 2, "float32": 4}
_NAMES: Final = {"bfloat16": "BF16", "float32": "F32"}

DType = Literal["bfloat16", "float32"]


def write(
    folder: Path,
    decoder: Decoder,
    tokenizer: str,
    dtype: DType,
    data: Callable[[TensorSpec], Iterator[bytes]],
) -> None:
    """Write config.json, tokenizer.json and its configuration, and shards of safetensors.

    Args:
        folder: Made if it is missing.
        decoder: The shape.
        tokenizer: The text of tokenizer.json.
        dtype: Of every weight.
        data: Gives a tensor's bytes, in any pieces.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_config(decoder, dtype), indent=2) + "\n")
    (folder / TOKENIZER).write_text(tokenizer, encoding="utf-8")
    # Without a class, transformers takes the family's, which adds tokens of its own.
    plain = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(plain) + "\n")
    width = _BYTES[dtype]
    shards = list(_shards(decoder, width))
    weight_map: dict[str, str] = {}
    for at, specs in enumerate(shards, 1):
        name = f"model-{at:05}-of-{len(shards):05}.safetensors"
        weight_map |= {spec.name: name for spec in specs}
        _write_shard(folder / name, specs, dtype, data)
    index = {"metadata": {"total_size": sum(width * spec.size for spec in tensors(decoder))}}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({**index, "weight_map": weight_map})
    )


def _config(decoder: Decoder, dtype: DType) -> dict[str, Any]:
    return {
        "architectures": [_ARCHITECTURES[decoder.family]],
        "model_type": decoder.family,
        "hidden_size": decoder.hidden,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim,
        "intermediate_size": decoder.intermediate,
        "vocab_size": decoder.vocabulary,
        "max_position_embeddings": decoder.positions,
        "rope_theta": decoder.rope_theta,
        "rms_norm_eps": decoder.norm_epsilon,
        "tie_word_embeddings": decoder.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "torch_dtype": dtype,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _shards(decoder: Decoder, width: int) -> Iterator[list[TensorSpec]]:
    shard: list[TensorSpec] = []
    for spec in tensors(decoder):
        if shard and width * sum(one.size for one in [*shard, spec]) > _SHARD_BYTES:
            yield shard
            shard = []
        shard.append(spec)
    yield shard


def _write_shard(
    path: Path, specs: list[TensorSpec], dtype: DType, data: Callable[[TensorSpec], Iterator[bytes]]
) -> None:
    """As safetensors lays it out: length of the header, header, data."""
    header: dict[str, Any] = {}
    end = 0
    for spec in specs:
        begin, end = end, end + _BYTES[dtype] * spec.size
        header[spec.name] = {
            "dtype": _NAMES[dtype],
            "shape": spec.shape,
            "data_offsets": [begin, end],
        }
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for spec in specs:
            file.writelines(data(spec))
