"""Float weights from GGUF files, whole and damaged."""

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t1_edge.errors import CheckpointError
from t1_edge_export.checkpoint import open_checkpoint
from t1_edge_export.decoder import HEAD, tensors
from t1_edge_export.gguf_checkpoint import GGUFCheckpoint, gguf_names
from t1_edge_export.gguf_tokenizer import gguf_tokenizer
from tiny import Tiny

_ONES = np.ones(64, np.float32)


@pytest.fixture
def tiny_gguf(tiny: Callable[..., Tiny], tmp_path: Path) -> Callable[..., Path]:
    """Writes the tiny Llama as other programs might: tiny_gguf(keys, tensors of its own)."""
    import gguf

    checkpoint = open_checkpoint(tiny("llama").folder)
    decoder, tokenizer = checkpoint.decoder, gguf_tokenizer(checkpoint.tokenizer, 384)

    def make(keys: Mapping[str, Any] = {}, extra: Mapping[str, Any] = {}) -> Path:
        writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
        plain = {
            "llama.context_length": decoder.positions,
            "llama.embedding_length": decoder.hidden,
            "llama.block_count": decoder.layers,
            "llama.feed_forward_length": decoder.intermediate,
            "llama.attention.head_count": decoder.heads,
            "llama.attention.head_count_kv": decoder.kv_heads,
            "llama.attention.layer_norm_rms_epsilon": decoder.norm_epsilon,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": tokenizer.pre,
            "tokenizer.ggml.tokens": tokenizer.tokens,
            "tokenizer.ggml.token_type": tokenizer.token_types,
            "tokenizer.ggml.merges": tokenizer.merges,
        }
        for key, value in (plain | dict(keys)).items():
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
        for spec in tensors(decoder):
            stored = gguf_names(decoder)[spec.name]
            writer.add_tensor(stored, checkpoint.rows(spec.name, 0, spec.shape[0]))
        for name, weights in extra.items():
            writer.add_tensor(name, weights)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "tiny.gguf"

    return make


def test_smollm2_says_where_it_comes_from(smollm2_gguf: Path) -> None:
    checkpoint = GGUFCheckpoint(smollm2_gguf)
    assert checkpoint.source.licence == "apache-2.0"
    assert "Q4_1" in checkpoint.source.note
    assert checkpoint.source.sha256.startswith("b179c952")
    assert checkpoint.decoder.head_dim == 64
    assert checkpoint.decoder.tied


@pytest.mark.parametrize("name", [HEAD, "nothing"])
def test_a_tensor_that_is_not_there_is_named(tiny_gguf: Callable[..., Path], name: str) -> None:
    with pytest.raises(CheckpointError, match=f"no tensor {name}"):
        open_checkpoint(tiny_gguf()).rows(name, 0, 1)


@pytest.mark.parametrize("size", [0, 4, 1000, 5_000_000, 98_000_000])
def test_a_gguf_that_is_cut_off_is_refused(smollm2_gguf: Path, tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.gguf"
    with smollm2_gguf.open("rb") as file:
        path.write_bytes(file.read(size))
    with pytest.raises(CheckpointError, match=r"cut\.gguf is not a whole GGUF"):
        GGUFCheckpoint(path)


def test_a_gguf_of_something_else_is_refused(tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="mamba"):
        GGUFCheckpoint(path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"llama.attention.head_count": 0}, "head_count is 0"),
        ({"llama.attention.head_count": [4, 4, 4]}, r"head_count is \[4, 4, 4\]"),
        ({"llama.attention.head_count": 8}, "attn_k.weight is"),
        ({"llama.rope.dimension_count": 8}, "a part of each head"),
        ({"llama.rope.scaling.type": "yarn"}, "rope scaling"),
        ({"llama.rope.scaling.factor": 4.0}, "rope scaling"),
        ({"llama.rope.scale_linear": 4.0}, "rope scaling"),
        ({"llama.rope.scaling.factor": [4.0]}, "rope scaling"),
        ({"llama.embedding_length": "wide"}, "'str'"),
        ({"llama.block_count": 1 << 30}, "layers"),
        ({"llama.rope.freq_base": float("nan")}, "rope_theta"),
        ({"tokenizer.ggml.tokens": 3}, "'int'"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer is a 'llama'"),
        ({"tokenizer.ggml.pre": "nobodys"}, "'nobodys'"),
        ({"tokenizer.ggml.pre": 3}, "pre"),
        ({"tokenizer.ggml.merges": [1, 2]}, "merges"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "2 token types"),
    ],
)
def test_what_a_gguf_says_of_itself_is_checked(
    tiny_gguf: Callable[..., Path], keys: Mapping[str, Any], message: str
) -> None:
    open_checkpoint(tiny_gguf({"llama.rope.scaling.factor": 1.0}))
    with pytest.raises(CheckpointError, match=rf"tiny\.gguf.*{message}"):
        _ = open_checkpoint(tiny_gguf(keys)).tokenizer


def test_a_bias_in_a_gguf_is_never_dropped(tiny_gguf: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"blk\.0\.attn_q\.bias"):
        open_checkpoint(tiny_gguf(extra={"blk.0.attn_q.bias": _ONES}))


@pytest.mark.parametrize("key", ["tokenizer.ggml.token_type", "tokenizer.ggml.tokens"])
@pytest.mark.parametrize("length", [1 << 20, 1 << 60])
def test_a_list_that_does_not_end_does_not_fill_memory(
    tiny_gguf: Callable[..., Path], key: str, length: int
) -> None:
    path = tiny_gguf()
    damaged = bytearray(path.read_bytes())
    behind_kinds = damaged.index(key.encode()) + len(key) + 8
    damaged[behind_kinds : behind_kinds + 8] = struct.pack("<Q", length)
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="not a whole GGUF file"):
        GGUFCheckpoint(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_damaged_gguf_is_one_clear_error(
    tiny_gguf: Callable[..., Path], tmp_path: Path, data: st.DataObject
) -> None:
    """Whatever is done to its keys, it opens or is a CheckpointError that names the file."""
    original = tmp_path / "tiny.gguf"
    damaged = bytearray((original if original.exists() else tiny_gguf()).read_bytes())
    keys = damaged.index(b"tokenizer.ggml.pre")
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, keys + 2000))] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged)
    message = str(path)
    try:
        _ = GGUFCheckpoint(path).tokenizer
        opened = open_checkpoint(path)
        for spec in tensors(opened.decoder):
            opened.rows(spec.name, 0, spec.shape[0])
    except CheckpointError as e:
        message = str(e)
    assert str(path) in message
