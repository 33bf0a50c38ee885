"""Files read back: what an engine multiplies with, against the checkpoint."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from t1_edge.build import Build, Format
from t1_edge_export.audit import relative_errors
from t1_edge_export.checkpoint import open_checkpoint
from t1_edge_export.decoder import EMBEDDING, tensors
from t1_edge_export.formats import choose_encodings, read_back
from t1_edge_export.quantize.blocks import quantize_4_bits
from t1_edge_export.vocabulary import with_tokens
from tiny import TINY_CONTRACT, Family, Tiny


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("format", ["onnx", "gguf"])
def test_errors_are_those_of_the_rounding(
    tiny: Callable[..., Tiny], tiny_build: Callable[..., Build], family: Family, format: Format
) -> None:
    build = tiny_build(family, "portable")
    decoder = build.manifest.decoder
    folder = open_checkpoint(tiny(family).folder)
    checkpoint = with_tokens(folder, TINY_CONTRACT)
    written = read_back(
        format, build.path, decoder, choose_encodings(decoder, "portable", [format], block_size=32)
    )
    found = relative_errors(checkpoint, written)
    assert found.keys() == {spec.name for spec in tensors(decoder) if spec.role != "norm"}
    assert 0.001 < found.pop(EMBEDDING) < 0.01
    assert 0.05 < min(found.values()) < max(found.values()) < 0.15
    name = "model.layers.1.self_attn.k_proj.weight"
    weights = checkpoint.rows(name, 0, decoder.kv_heads * decoder.head_dim)
    codes, scales = quantize_4_bits(weights, block_size=32)
    blocks = (codes.astype(np.float32) - 8).reshape(*scales.shape, 32) * scales[..., None]
    lost = np.linalg.norm(blocks.reshape(weights.shape) - weights) / np.linalg.norm(weights)
    assert found[name] == pytest.approx(lost, rel=1e-5)


@pytest.mark.parametrize("format", ["onnx", "gguf"])
def test_float_files_hold_the_checkpoint(
    tiny: Callable[..., Tiny], tiny_build: Callable[..., Build], format: Format
) -> None:
    build = tiny_build("llama", "float", tied=False)
    decoder = build.manifest.decoder
    checkpoint = with_tokens(open_checkpoint(tiny("llama", tied=False).folder), TINY_CONTRACT)
    written = read_back(
        format, build.path, decoder, choose_encodings(decoder, "float", [format], block_size=32)
    )
    assert set(relative_errors(checkpoint, written).values()) == {0.0}


def test_a_matrix_that_is_another_is_far_off(tiny: Callable[..., Tiny]) -> None:
    """What the gate would name if a container stored rows in the wrong order."""
    checkpoint = with_tokens(open_checkpoint(tiny("llama", tied=False).folder), TINY_CONTRACT)

    class Turned:
        def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
            return checkpoint.rows(name, start, stop)[::-1]

    assert min(relative_errors(checkpoint, Turned()).values()) > 1
