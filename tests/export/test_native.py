"""The profile `native`: llama.cpp's own mixture, and the best that ONNX Runtime reads."""

import ctypes
import importlib.machinery
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from t1_edge.build import GGUF_MODEL, Build, Format, Profile
from t1_edge.cli import main
from t1_edge.encoder import Encoder
from t1_edge.errors import CheckpointError, EngineError, ExportError, MissingExtraError
from t1_edge_export.audit import relative_errors
from t1_edge_export.checkpoint import Checkpoint, Derived, open_checkpoint
from t1_edge_export.containers import Encoding
from t1_edge_export.decoder import linear_layers
from t1_edge_export.formats import choose_encodings, open_container, read_back
from t1_edge_export.gguf_checkpoint import gguf_names
from t1_edge_export.gguf_metadata import gguf_metadata
from t1_edge_export.journal import NOTHING, Journal
from t1_edge_export.pipeline import export
from t1_edge_export.precision import Budget
from t1_edge_export.quantize import packed
from t1_edge_export.quantize.calibration import Calibration
from t1_edge_export.quantize.packed import LARGEST, pack
from t1_edge_export.quantize.quantizer import SEARCH, Quantizer, weighted
from t1_edge_export.quantize.statistics import Statistics
from t1_edge_export.request import Request
from t1_edge_export.slabs import encode
from t1_edge_export.vocabulary import with_tokens
from t1_edge_export.weights import write_weights
from tiny import TINY_CONTRACT, Family, Tiny


@pytest.mark.parametrize("calibrated", [True, False])
def test_the_gguf_is_what_llama_cpp_makes_of_the_checkpoint(
    smollm2_gguf: Path, smollm2_statistics: Statistics, tmp_path: Path, calibrated: bool
) -> None:
    source, checkpoint, quantizer = smollm2_gguf, open_checkpoint(smollm2_gguf), SEARCH
    if calibrated:
        quantizer = weighted(smollm2_statistics, checkpoint.decoder)
        checkpoint = quantizer.smoothing.applied(checkpoint)
        (tmp_path / "smoothed").mkdir()
        _written(checkpoint, SEARCH, tmp_path / "smoothed", "float")
        source = tmp_path / "smoothed" / GGUF_MODEL
    ours = _written(checkpoint, quantizer, tmp_path)
    theirs = _quantized_by_llama_cpp(source, quantizer.importance(), tmp_path / "theirs.gguf")
    assert ours.keys() == theirs.keys()
    assert {kind for kind, _ in ours.values()} == {"F32", "Q4_K", "Q5_0", "Q6_K", "Q8_0"}
    for name, (kind, stored) in theirs.items():
        assert ours[name][0] == kind, name
        if kind != "Q8_0":  # which t1-edge rounds by the scale as it is stored
            np.testing.assert_array_equal(ours[name][1], stored, err_msg=name)


Stored = Mapping[str, tuple[str, NDArray[Any]]]


def _written(
    checkpoint: Checkpoint, quantizer: Quantizer, folder: Path, profile: Profile = "native"
) -> Stored:
    decoder = checkpoint.decoder
    encodings = choose_encodings(decoder, profile, ["gguf"], block_size=32)
    metadata = gguf_metadata(decoder, encodings, checkpoint.tokenizer, "ours", checkpoint.origin)
    container = open_container("gguf", folder, decoder, encodings, metadata)
    journal = Journal.open(folder / "journal.jsonl", NOTHING)
    write_weights(checkpoint, encodings, quantizer, [container], journal)
    container.finish()
    return _stored(folder / GGUF_MODEL)


def _quantized_by_llama_cpp(
    source: Path, importance: Mapping[str, NDArray[np.float32]], path: Path
) -> Stored:
    """What `llama_model_quantize` writes for Q4_K_M, values and the embedding held at 8 bits."""
    import llama_cpp.llama_cpp as api

    names = gguf_names(open_checkpoint(source).decoder)
    entries = (api.llama_model_imatrix_data * (len(importance) + 1))()  # an empty one ends it
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name = names[name].encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    overrides = (api.llama_model_tensor_override * 2)()  # likewise
    overrides[0].pattern = rb"blk\.[0-9]+\.attn_v\.weight"
    overrides[0].type = gguf.GGMLQuantizationType.Q8_0
    parameters = api.llama_model_quantize_default_params()
    parameters.ftype = gguf.LlamaFileType.MOSTLY_Q4_K_M
    parameters.allow_requantize = True
    parameters.token_embedding_type = gguf.GGMLQuantizationType.Q8_0
    parameters.tt_overrides = overrides
    if importance:
        parameters.imatrix = entries
    done = api.llama_model_quantize(
        str(source).encode(), str(path).encode(), ctypes.byref(parameters)
    )
    assert done == 0
    return _stored(path)


def _stored(path: Path) -> Stored:
    reader = gguf.GGUFReader(path)
    return {
        tensor.name: (tensor.tensor_type.name, np.array(tensor.data)) for tensor in reader.tensors
    }


@pytest.fixture
def native(tiny: Callable[..., Tiny], tmp_path: Path) -> Callable[[Family, Format], Build]:
    """Makes native builds of tiny decoders."""

    def make(family: Family, format: Format) -> Build:
        request = Request(
            name="native",
            destination=tmp_path / format,
            contract=TINY_CONTRACT,
            formats=[format],
            profile="native",
            allow_drift=True,  # weights that are noise lose more than real ones
        )
        return export(open_checkpoint(tiny(family).folder), request)

    return make


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_native_gguf_is_nearer_to_the_float_weights_than_a_portable_one(
    tiny: Callable[..., Tiny],
    tiny_build: Callable[..., Build],
    native: Callable[[Family, Format], Build],
    family: Family,
) -> None:
    checkpoint = with_tokens(open_checkpoint(tiny(family).folder), TINY_CONTRACT)
    build = native(family, "gguf")
    assert build.manifest.profile == "native"
    assert build.manifest.formats == ("gguf",)
    assert build.manifest.fingerprint != tiny_build(family, "portable").manifest.fingerprint
    found = _mean_error(checkpoint, build, "native")
    assert found < 0.6 * _mean_error(checkpoint, tiny_build(family, "portable"), "portable")
    figures = build.manifest.verification.engines["gguf"]
    plain = tiny_build(family, "portable").manifest.verification.engines["gguf"]
    assert figures.cosine_mean > plain.cosine_mean
    with Encoder.load(build.path) as encoder:
        assert encoder.info.engine == "gguf"


def test_a_kernel_that_is_not_there_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = importlib.machinery.ModuleSpec("llama_cpp", None, origin=str(tmp_path / "x.py"))
    monkeypatch.setattr(packed, "find_spec", lambda name: elsewhere)
    monkeypatch.setattr(packed, "_kernel", packed._kernel.__wrapped__)
    with pytest.raises(EngineError, match="has no ggml-base library"):
        pack(np.ones((1, 32), np.float32), "q5_0")
    monkeypatch.setattr(packed, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="llama-cpp-python"):
        pack(np.ones((1, 32), np.float32), "q5_0")


def _mean_error(checkpoint: Checkpoint, build: Build, profile: Any) -> float:
    decoder = checkpoint.decoder
    encodings = choose_encodings(decoder, profile, ["gguf"], block_size=32)
    written = read_back("gguf", build.path, decoder, encodings)
    errors = relative_errors(checkpoint, written)
    return float(np.mean([errors[spec.name] for spec in linear_layers(decoder)]))


def test_native_onnx_is_gptq_with_layers_at_8_bits(
    tiny: Callable[..., Tiny], own_cache: Path, tmp_path: Path
) -> None:
    contract = tmp_path / "contract.json"
    contract.write_bytes(msgspec.json.encode(TINY_CONTRACT))
    command = ["export", str(tiny("llama").folder), "--contract", str(contract), "--allow-drift"]
    command += ["--profile", "native", "--output", str(tmp_path / "build")]
    done = CliRunner().invoke(main, [*command, "--format", "onnx"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    manifest = Build(tmp_path / "build").manifest
    assert manifest.profile == "native"
    assert manifest.calibration.startswith("GPTQ ")
    assert manifest.eight_bit
    done = CliRunner().invoke(
        main, [*command, "--format", "gguf", "--dry-run", "--json", "--force"]
    )
    planned = {part["encoding"]: part["count"] for part in json.loads(done.stdout)["tensors"]}
    assert planned == {"q8_0": 1 + 3 + 1, "q5_0": 3 * 7 - 4, "f32": 7}


@pytest.mark.parametrize(
    ("formats", "budget", "calibration", "message"),
    [
        (["onnx", "gguf"], None, Calibration(), "native weights are one engine's"),
        (["gguf"], Budget(bits=5), Calibration(), "leave --bits and --target-size out"),
        (["onnx"], None, Calibration(), "say how many, --bits 5"),
        (["gguf"], None, Calibration(kind="rtn"), "leave --quantizer out"),
    ],
)
def test_what_native_has_no_use_for_is_refused(
    checkpoint: Checkpoint,
    tmp_path: Path,
    formats: list[Format],
    budget: Budget | None,
    calibration: Calibration,
    message: str,
) -> None:
    request = Request(
        name="native",
        destination=tmp_path / "native",
        contract=TINY_CONTRACT,
        formats=formats,
        profile="native",
        budget=budget,
        calibration=calibration,
    )
    with pytest.raises(ExportError, match=message):
        export(checkpoint, request)
    assert not list(tmp_path.iterdir())


def test_weights_too_large_for_a_scale_are_refused(checkpoint: Checkpoint) -> None:
    spec = next(linear_layers(checkpoint.decoder))

    def rows(name: str, start: int, stop: int) -> NDArray[np.float32]:
        weights = checkpoint.rows(name, start, stop)
        if name == spec.name:
            weights = weights.copy()
            weights.reshape(-1)[0] = LARGEST * 1.01
        return weights

    encodings = choose_encodings(checkpoint.decoder, "native", ["gguf"], block_size=32)
    with pytest.raises(CheckpointError, match=f"{spec.name} holds weights too large"):
        list(encode(Derived(checkpoint, rows=rows), encodings, SEARCH))


@pytest.mark.parametrize("encoding", ["q5_0", "q4_k", "q6_k"])
@pytest.mark.parametrize("given", ["no importance", "none of a block", "zeros", "large weights"])
def test_packed_blocks_are_finite_and_near(encoding: Encoding, given: str) -> None:
    random = np.random.default_rng(0)
    weights = random.standard_normal((3, 512), np.float32)
    importance = None if given == "no importance" else np.ones(512, np.float32)
    if given == "none of a block" and importance is not None:
        importance[:256] = 0
    if given == "zeros":
        weights[1] = 0
    if given == "large weights":
        weights *= np.float32(LARGEST) / np.abs(weights).max()
    packed = pack(weights, encoding, importance)
    kind = gguf.GGMLQuantizationType[encoding.upper()]
    found = gguf.dequantize(packed, kind)
    counted = slice(256, None) if given == "none of a block" else slice(None)
    away = np.linalg.norm((found - weights)[:, counted]) / np.linalg.norm(weights[:, counted])
    assert np.isfinite(found).all()
    assert away < {"q5_0": 0.06, "q4_k": 0.09, "q6_k": 0.03}[encoding]
