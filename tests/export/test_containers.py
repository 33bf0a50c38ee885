"""Both containers hold the same weights, bit for bit."""

from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from t1_edge.build import GGUF_MODEL, ONNX_GRAPH, ONNX_WEIGHTS, Build, Decoder
from t1_edge.errors import ExportError
from t1_edge_export import pipeline
from t1_edge_export.checkpoint import open_checkpoint
from t1_edge_export.containers import EIGHT_BITS, FOUR_BITS, BlockSize, Encoding, Slab
from t1_edge_export.decoder import TensorSpec, linear_layers, tensors
from t1_edge_export.formats import choose_encodings
from t1_edge_export.gguf_checkpoint import GGUFCheckpoint
from t1_edge_export.onnx_layout import Matrix, lay_out
from t1_edge_export.onnx_writer import OnnxContainer
from t1_edge_export.pipeline import export
from t1_edge_export.precision import Budget
from t1_edge_export.request import Request
from tiny import KNOWN, TINY_CONTRACT, Family, Tiny

Float32Array = NDArray[np.float32]


_BLOCKS = {
    "q4_0": (False, 32),
    "q4_64": (False, 64),
    "q4_128": (False, 128),
    "q8_0": (True, 32),
    "q8_64": (True, 64),
    "q8_128": (True, 128),
}
"""Whether codes have 8 bits, and how many share a scale."""


def _from_onnx(path: Path, matrix: Matrix, spec: TensorSpec) -> Float32Array:
    """A tensor's weights out of weights.bin, by the meaning that the operators give the bytes."""
    first, rows = matrix.parts[spec.name], spec.shape[0]
    at = matrix.codes + first * matrix.row_bytes
    raw = np.fromfile(path, np.uint8, rows * matrix.row_bytes, offset=at).reshape(rows, -1)
    if matrix.encoding == "f32":
        return raw.view(np.float32)
    at = matrix.scales + first * matrix.row_scale_bytes
    eight, block = _BLOCKS[matrix.encoding]
    scales = np.fromfile(path, np.float16, rows * matrix.width // block, offset=at)
    if eight:
        codes = raw.astype(np.float32) - 128
    else:
        codes = np.stack([raw & 15, raw >> 4], axis=-1).reshape(rows, -1).astype(np.float32) - 8
    blocks = codes.reshape(rows, -1, block) * scales.astype(np.float32).reshape(rows, -1, 1)
    return np.asarray(blocks.reshape(rows, -1), np.float32)


def _assert_equal_weights(build: Build, block_size: BlockSize = 32) -> None:
    decoder = build.manifest.decoder
    stored = GGUFCheckpoint(build.file(GGUF_MODEL))
    matrices = lay_out(decoder, _encodings(build, block_size))
    for spec in tensors(decoder):
        if spec.role != "norm":
            ours = _from_onnx(build.file(ONNX_WEIGHTS), matrices[spec.name], spec)
            theirs = stored.rows(spec.name, 0, spec.shape[0])
            np.testing.assert_array_equal(ours, theirs, err_msg=spec.name)


def _encodings(build: Build, block_size: BlockSize) -> Mapping[str, Encoding]:
    eight, four = EIGHT_BITS[block_size], FOUR_BITS[block_size]
    if build.manifest.profile == "float":
        eight = four = "f32"
    specs = tensors(build.manifest.decoder)
    by_role = {s.name: four if s.role == "linear" else eight for s in specs}
    return by_role | dict.fromkeys(build.manifest.eight_bit, eight)


@pytest.mark.parametrize("profile", ["float", "portable"])
@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("qwen3", False)])
def test_tiny_builds_hold_equal_weights(
    tiny_build: Callable[..., Build], family: Family, tied: bool, profile: str
) -> None:
    _assert_equal_weights(tiny_build(family, profile, tied=tied))


def test_smollm2_holds_equal_weights(smollm2: Build) -> None:
    _assert_equal_weights(smollm2)


@pytest.mark.parametrize(
    ("bits", "block_size"), [(5.0, 32), (6.3, 32), (8.5, 32), (5.0, 64), (8.25, 64), (5.0, 128)]
)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_mixed_builds_hold_equal_weights(
    tiny_mixed: Callable[..., Build], family: Family, bits: float, block_size: BlockSize
) -> None:
    build = tiny_mixed(family, Budget(bits=bits), block_size)
    assert build.manifest.eight_bit
    _assert_equal_weights(build, block_size)


def test_smollm2_holds_equal_weights_within_a_budget(smollm2_at: Callable[[float], Build]) -> None:
    _assert_equal_weights(smollm2_at(5.5))


def test_the_block_formats_are_the_promised_ones(smollm2: Build) -> None:
    reader = gguf.GGUFReader(smollm2.file(GGUF_MODEL))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["token_embd.weight"] == "Q8_0"
    matrices = {
        kind for name, kind in kinds.items() if name.startswith("blk") and "norm" not in name
    }
    assert matrices == {"Q4_0"}
    assert smollm2.manifest.encodings == {"q8_0": 1, "q4_0": 210, "f32": 61}


def test_the_graph_is_valid_onnx_but_for_the_operators_of_onnx_runtime(smollm2: Build) -> None:
    model = onnx.load(smollm2.file(ONNX_GRAPH), load_external_data=False)
    standard = onnx.helper.make_opsetid("", 21)
    assert standard in list(model.opset_import)
    used = {node.op_type for node in model.graph.node if node.domain == "com.microsoft"}
    assert {"GroupQueryAttention", "MatMulNBits", "GatherBlockQuantized"} <= used
    assert {"SkipSimplifiedLayerNormalization", "QuickGelu"} <= used


def test_the_checkpoint_comes_back_from_a_float_gguf(
    tiny_build: Callable[..., Build], tiny: Callable[..., Tiny]
) -> None:
    build = tiny_build("llama", "float")
    original, stored = open_checkpoint(tiny("llama").folder), GGUFCheckpoint(build.file(GGUF_MODEL))
    for spec in tensors(original.decoder):
        rows = min(spec.shape[0], KNOWN)  # behind the tokenizer's ids the build has its own rows
        found, expected = stored.rows(spec.name, 0, rows), original.rows(spec.name, 0, rows)
        np.testing.assert_array_equal(found, expected, err_msg=spec.name)


_DECODER = Decoder(
    family="llama", hidden=32, layers=1, heads=2, kv_heads=1, head_dim=16, intermediate=32,
    vocabulary=40, positions=64, rope_theta=1e4, norm_epsilon=1e-6, tied=True,
)  # fmt: skip


@pytest.mark.parametrize(
    ("eight_bit", "together"),
    [
        ((), [["q", "k", "v"], ["o"], ["gate", "up"], ["down"]]),
        (("v",), [["q", "k"], ["v"], ["o"], ["gate", "up"], ["down"]]),
        (("k", "v", "down"), [["q"], ["k", "v"], ["o"], ["gate", "up"], ["down"]]),
        (("k", "up"), [["q"], ["k"], ["v"], ["o"], ["gate"], ["up"], ["down"]]),
    ],
)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_what_multiplies_the_same_is_one_matrix_where_its_encoding_is_one(
    tiny: Callable[..., Tiny],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: Family,
    eight_bit: tuple[str, ...],
    together: list[list[str]],
) -> None:
    checkpoint = open_checkpoint(tiny(family).folder)
    layers = [spec.name for spec in linear_layers(checkpoint.decoder)]
    chosen = [name for name in layers if _short(name) in eight_bit]
    encodings = choose_encodings(
        checkpoint.decoder, "portable", ("onnx", "gguf"), chosen, block_size=32
    )
    monkeypatch.setattr(pipeline, "_encodings", lambda *_: encodings)
    request = Request(
        name="tiny", destination=tmp_path / "x", contract=TINY_CONTRACT, allow_drift=True
    )
    build = export(checkpoint, request)
    first = [m for m in lay_out(checkpoint.decoder, encodings).values() if "layers.0." in m.name]
    parts = {matrix.name: [_short(name) for name in matrix.parts] for matrix in first}
    assert list(parts.values()) == together
    # llama.cpp multiplies them one by one.
    cross = build.manifest.verification.cross_engine_min
    assert cross is not None
    assert cross > 0.998


def _short(name: str) -> str:
    return name.removesuffix("_proj.weight").rpartition(".")[2]


def _slab(spec: TensorSpec, start: int = 0) -> Slab:
    rows = spec.shape[0] - start
    codes = np.ones((rows, *spec.shape[1:]), np.float32)
    return Slab(spec=spec, encoding="f32", start=start, codes=codes)


def test_a_gap_between_slabs_is_refused(tmp_path: Path) -> None:
    specs = list(tensors(_DECODER))
    container = OnnxContainer(tmp_path, _DECODER, {spec.name: "f32" for spec in specs})
    with pytest.raises(ExportError, match="rows from 8"):
        container.write(_slab(specs[0], 8))
    container.abort()


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    specs = list(tensors(_DECODER))
    container = OnnxContainer(tmp_path, _DECODER, {spec.name: "f32" for spec in specs})
    for spec in specs[:-1]:
        container.write(_slab(spec))
    with pytest.raises(ExportError, match=r"model\.norm\.weight"):
        container.finish()
    container.abort()
