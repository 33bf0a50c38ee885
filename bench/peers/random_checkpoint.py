"""A checkpoint in the shape of a published one, of random weights: for memory and speed alone.

    python -m peers.random_checkpoint OUT [--layers 36]

The shape is Qwen3-4B's (config.json of Qwen/Qwen3-4B): 8 GB of bfloat16 in shards. The tokenizer is
that of smollm2-135m (`t1-edge pull smollm2-135m`), whose ids it has rows for.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import numpy as np
from numpy.typing import NDArray

from t1_edge.build import TOKENIZER, Decoder
from t1_edge_export.checkpoint import find_checkpoint, open_checkpoint
from t1_edge_export.decoder import TensorSpec, tensors

QWEN3_4B: Final = Decoder(
    family="qwen3",
    hidden=2560,
    layers=36,
    heads=32,
    kv_heads=8,
    head_dim=128,
    intermediate=9728,
    vocabulary=151_936,
    positions=40_960,
    rope_theta=1e6,
    norm_epsilon=1e-6,
    tied=True,
)

_SHARD_BYTES: Final = 2**31
_DEVIATION: Final = np.float32(0.02)


def write(folder: Path, decoder: Decoder, tokenizer: str) -> None:
    """Write config.json, tokenizer.json and shards of random bfloat16 weights.

    Args:
        folder: Made if it is missing.
        decoder: The shape.
        tokenizer: The text of tokenizer.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_config(decoder), indent=2) + "\n")
    (folder / TOKENIZER).write_text(tokenizer, encoding="utf-8")
    random = np.random.default_rng(0)
    shards = list(_shards(decoder))
    weight_map: dict[str, str] = {}
    for at, specs in enumerate(shards, 1):
        name = f"model-{at:05}-of-{len(shards):05}.safetensors"
        weight_map |= {spec.name: name for spec in specs}
        _write_shard(folder / name, specs, random)
    index = {"metadata": {"total_size": sum(map(_size, tensors(decoder)))}}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({**index, "weight_map": weight_map})
    )


def _config(decoder: Decoder) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
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
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _size(spec: TensorSpec) -> int:
    return 2 * spec.size


def _shards(decoder: Decoder) -> Iterator[list[TensorSpec]]:
    shard: list[TensorSpec] = []
    for spec in tensors(decoder):
        if shard and sum(map(_size, [*shard, spec])) > _SHARD_BYTES:
            yield shard
            shard = []
        shard.append(spec)
    yield shard


def _write_shard(path: Path, specs: list[TensorSpec], random: np.random.Generator) -> None:
    """As safetensors lays it out: length of the header, header, data."""
    header: dict[str, Any] = {}
    end = 0
    for spec in specs:
        begin, end = end, end + _size(spec)
        header[spec.name] = {"dtype": "BF16", "shape": spec.shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for spec in specs:
            file.writelines(_rows(spec, random))


def _rows(spec: TensorSpec, random: np.random.Generator) -> Iterator[bytes]:
    """A tensor's bytes, some rows at a time; norms are near 1."""
    width = spec.shape[-1]
    count = spec.size // width
    step = max(1, 2**22 // width)
    for start in range(0, count, step):
        values = random.standard_normal((min(step, count - start), width), np.float32) * _DEVIATION
        yield _bfloat16(values + np.float32(len(spec.shape) == 1)).tobytes()


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves of float32, cut off."""
    return (values.view(np.uint32) >> 16).astype("<u2")


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--layers", default=QWEN3_4B.layers, show_default=True)
def main(out: Path, layers: int) -> None:
    """Write a random checkpoint of Qwen3-4B's shape to OUT."""
    tokenizer = open_checkpoint(find_checkpoint("smollm2-135m")).tokenizer
    write(out, msgspec.structs.replace(QWEN3_4B, layers=layers), tokenizer)


if __name__ == "__main__":
    main()
