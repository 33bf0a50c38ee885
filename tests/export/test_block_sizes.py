"""Blocks wider than 32: several of llama.cpp's with one scale, and one of ONNX Runtime's."""

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from stages import stage
from t1_edge.build import CUDA_GRAPH, GGUF_MODEL, ONNX_GRAPH, ONNX_WEIGHTS, Build, Format
from t1_edge.cli import main
from t1_edge.encoder import Encoder
from t1_edge.errors import CheckpointError, ExportError
from t1_edge_bench import latency
from t1_edge_export.bars import Bars, no_bars
from t1_edge_export.checkpoint import open_checkpoint
from t1_edge_export.decoder import linear_layers, matrices
from t1_edge_export.onnx_layout import ALIGN
from t1_edge_export.pipeline import export
from t1_edge_export.precision import Budget
from t1_edge_export.quantize.calibration import Calibration
from t1_edge_export.request import Request
from tiny import TINY_CONTRACT, Family, Tiny

CROSS = 0.995
"""ONNX Runtime rounds activations in blocks as wide as the weights', llama.cpp in 32."""

ROWS = [(5, 9, 200, 31, 64, 3), (17, 300, 8, 90)]


@pytest.fixture(scope="session")
def wide(
    tiny: Callable[..., Tiny], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Family], Build]:
    """Builds of tiny decoders in blocks of 64, some layers in 8 bits, with every graph."""

    @cache
    def build(family: Family) -> Build:
        checkpoint = open_checkpoint(tiny(family, tied=family == "llama").folder)
        request = _request(
            tmp_path_factory.mktemp(family) / "wide",
            budget=Budget(bits=5),
            cuda=True,
            documents=True,
        )
        return export(checkpoint, request)

    return build


def _request(destination: Path, **options: Any) -> Request:
    given: dict[str, Any] = {"contract": TINY_CONTRACT, "allow_drift": True, "block_size": 64}
    return Request(name="wide", destination=destination, **(given | options))


FAMILIES = pytest.mark.parametrize("family", ["llama", "qwen3"])


@FAMILIES
def test_a_manifest_and_a_card_tell_of_them(
    wide: Callable[[Family], Build], family: Family
) -> None:
    build = wide(family)
    manifest = build.manifest
    eight = len(manifest.eight_bit) + (1 if manifest.decoder.tied else 2)
    assert manifest.eight_bit
    linear = 3 * 7 - len(manifest.eight_bit)
    norms = manifest.encodings["f32"]
    assert manifest.encodings == {"q4_64": linear, "q8_64": eight, "f32": norms}
    card = (build.path / "README.md").read_text(encoding="utf-8")
    assert f"{linear} tensors q4_64" in card
    assert "have 8 bits" in card


@FAMILIES
def test_the_engines_agree(wide: Callable[[Family], Build], family: Family) -> None:
    verification = wide(family).manifest.verification
    assert verification.cross_engine_min is not None
    assert verification.cross_engine_min > CROSS
    assert verification.documents is not None
    assert verification.documents.cosine_min > 0.99


@FAMILIES
def test_a_gguf_repeats_the_scales_and_a_graph_does_not(
    wide: Callable[[Family], Build], family: Family
) -> None:
    build = wide(family)
    scale = np.dtype("<f2").itemsize
    bytes_of = {"Q4_0": scale + 16, "Q8_0": scale + 32}
    tensors = gguf.GGUFReader(build.file(GGUF_MODEL)).tensors
    assert {tensor.tensor_type.name for tensor in tensors} == {*bytes_of, "F32"}
    for tensor in tensors:
        if tensor.tensor_type.name in bytes_of:
            blocks = tensor.data.reshape(-1, bytes_of[tensor.tensor_type.name])
            scales = np.ascontiguousarray(blocks[:, :scale]).view("<f2").reshape(-1, 2)
            np.testing.assert_array_equal(scales[:, 0], scales[:, 1], err_msg=tensor.name)
    for graph in (ONNX_GRAPH, CUDA_GRAPH):
        model = onnx.load(build.file(graph), load_external_data=False)
        found = {
            (node.op_type, attribute.i)
            for node in model.graph.node
            for attribute in node.attribute
            if attribute.name == "block_size"
        }
        assert found == {("MatMulNBits", 64), ("GatherBlockQuantized", 64)}


def test_a_wide_build_is_smaller_in_onnx_alone(tiny: Callable[..., Tiny], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny("llama").folder)
    narrow, broad = (
        export(checkpoint, _request(tmp_path / str(size), block_size=size)) for size in (32, 64)
    )
    specs = list(matrices(narrow.manifest.decoder))
    scales = sum(2 * spec.size // 64 for spec in specs)  # half of what blocks of 32 have
    lost = narrow.manifest.files[ONNX_WEIGHTS].size - broad.manifest.files[ONNX_WEIGHTS].size
    assert abs(lost - scales) <= ALIGN * len(specs)
    assert narrow.manifest.files[GGUF_MODEL].size == broad.manifest.files[GGUF_MODEL].size


@FAMILIES
def test_bits_are_kept_to_the_layer(wide: Callable[[Family], Build], family: Family) -> None:
    manifest = wide(family).manifest
    layers = list(linear_layers(manifest.decoder))
    used = sum(spec.size * (8.25 if spec.name in manifest.eight_bit else 4.25) for spec in layers)
    left = 5 * sum(spec.size for spec in layers) - used
    assert 0 <= left < min(4 * spec.size for spec in layers if spec.name not in manifest.eight_bit)


def test_a_target_size_is_kept(tiny: Callable[..., Tiny], tmp_path: Path) -> None:
    request = _request(tmp_path / "x", formats=("onnx",), budget=Budget(size=200_000))
    build = export(open_checkpoint(tiny("llama").folder), request)
    assert build.manifest.eight_bit
    assert 190_000 < build.size("onnx") <= 200_000


@pytest.mark.parametrize(
    "calibration",
    [
        Calibration(kind="rtn"),
        Calibration(kind="gptq", rows=ROWS, dataset="two rows"),
    ],
    ids=lambda calibration: calibration.kind,
)
def test_every_quantizer_has_them(
    tiny: Callable[..., Tiny], tmp_path: Path, calibration: Calibration
) -> None:
    checkpoint = open_checkpoint(tiny("qwen3").folder)
    build = export(checkpoint, _request(tmp_path / "x", calibration=calibration))
    assert "q4_64" in build.manifest.encodings
    assert build.manifest.verification.cross_engine_min > CROSS  # type: ignore[operator]


def test_it_encodes(wide: Callable[[Family], Build], own_cache: Path) -> None:
    path = str(wide("llama").path)
    with Encoder.load(path, engine="onnx") as one, Encoder.load(path, engine="gguf") as other:
        found, expected = (
            encoder.encode_query("the north", thought="the lake").vector for encoder in (one, other)
        )
    assert float(found @ expected) > CROSS


@FAMILIES
@pytest.mark.parametrize("format", ["onnx", "gguf"])
def test_a_step_reads_all_but_an_embedding_that_is_no_head(
    wide: Callable[[Family], Build], family: Family, format: Format
) -> None:
    build = wide(family)
    decoder = build.manifest.decoder
    bits = 8.25 if format == "onnx" else 8.5
    spared = 0 if decoder.tied else decoder.vocabulary * decoder.hidden * bits / 8
    assert latency._step_bytes(build, format) == build.size(format) - spared


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "float"}, "leave --block-size out"),
        ({"formats": ("gguf",)}, "ask for the format onnx too"),
        ({"profile": "native", "formats": ("gguf",)}, "llama.cpp's own blocks"),
        ({"budget": Budget(bits=4.2)}, r"in blocks of 64 .* 4\.25 .* 8\.25"),
    ],
)
def test_what_has_no_use_for_them_is_refused(
    tiny: Callable[..., Tiny], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        export(open_checkpoint(tiny("llama").folder), _request(tmp_path / "x", **options))
    assert os.listdir(tmp_path) == []


def test_blocks_that_do_not_divide_are_refused(tiny: Callable[..., Tiny], tmp_path: Path) -> None:
    request = _request(tmp_path / "x", block_size=128)
    with pytest.raises(CheckpointError, match=r"64 wide, .* 128 do not .* --block-size 64"):
        export(open_checkpoint(tiny("llama").folder), request)
    assert os.listdir(tmp_path) == []


def test_other_blocks_do_not_go_on_with_what_was_left(
    tiny: Callable[..., Tiny], tmp_path: Path
) -> None:
    def interrupted(count: int) -> None:
        raise KeyboardInterrupt

    def run(bars: Bars = no_bars, **options: Any) -> Build:
        return export(open_checkpoint(tiny("llama").folder), _request(target, **options), bars=bars)

    target = tmp_path / "x"
    with pytest.raises(KeyboardInterrupt):
        run(stage("quantizing", interrupted))
    with pytest.raises(ExportError, match="other options"):
        run(block_size=32, resume=True)
    assert "q4_64" in run(resume=True).manifest.encodings


def test_the_command_plans_what_it_writes(
    tiny: Callable[..., Tiny], tmp_path: Path, own_cache: Path
) -> None:
    contract = tmp_path / "contract.json"
    contract.write_bytes(msgspec.json.encode(TINY_CONTRACT))
    command = ["export", str(tiny("qwen3").folder), "--contract", str(contract), "--json"]
    command += ["--calibration", "none", "--block-size", "64", "--bits", "4.25", "--allow-drift"]
    command += ["--output", str(tmp_path / "x")]
    plan = CliRunner().invoke(main, [*command, "--dry-run"])
    assert plan.exit_code == 0, plan.output
    kinds = {part["encoding"]: part["bits"] for part in json.loads(plan.stdout)["tensors"]}
    assert kinds == {"q4_64": 4.25, "q8_64": 8.25, "f32": 32}
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    files = Build(tmp_path / "x").manifest.files
    for name in (ONNX_WEIGHTS, GGUF_MODEL):
        assert json.loads(plan.stdout)["files"][name] == pytest.approx(files[name].size, abs=200)
