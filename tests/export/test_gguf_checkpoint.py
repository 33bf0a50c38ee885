"""Float weights from GGUF files, whole and damaged."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t1_edge.errors import CheckpointError
from t1_edge_export.checkpoint import open_checkpoint
from t1_edge_export.decoder import HEAD
from t1_edge_export.gguf_checkpoint import GGUFCheckpoint

_ONES = np.ones(64, np.float32)


def test_smollm2_says_where_it_comes_from(smollm2_gguf: Path) -> None:
    checkpoint = GGUFCheckpoint(smollm2_gguf)
    assert checkpoint.source().licence == "apache-2.0"
    assert "Q4_1" in checkpoint.source().note
    assert checkpoint.source().sha256.startswith("b179c952")
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
