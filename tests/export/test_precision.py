"""Mixed precision: budgets are kept to the byte, and 8 bits go where 4 would cost most."""

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from stages import stage
from t1_edge.build import GGUF_MODEL, ONNX_GRAPH, Build, Format
from t1_edge.cli import main
from t1_edge.errors import ExportError
from t1_edge_export import pipeline
from t1_edge_export.bars import Bars, no_bars
from t1_edge_export.checkpoint import Checkpoint, open_checkpoint
from t1_edge_export.containers import EIGHT_BITS, FOUR_BITS, BlockSize, Encoding, Slab
from t1_edge_export.decoder import TensorSpec, layer_name, linear_layers
from t1_edge_export.formats import choose_encodings, file_sizes
from t1_edge_export.gguf_checkpoint import gguf_names
from t1_edge_export.pipeline import export
from t1_edge_export.plan import make_plan
from t1_edge_export.precision import Budget, choose_eight_bit, find_limit
from t1_edge_export.presets import PRESETS
from t1_edge_export.quantize.blocks import Blocks, dequantize, quantize_4_bits, quantize_8_bits
from t1_edge_export.quantize.calibration import Calibration
from t1_edge_export.quantize.sensitivity import by_worth
from t1_edge_export.quantize.statistics import Statistics, collect
from t1_edge_export.request import Request
from t1_edge_export.vocabulary import with_tokens
from tiny import TINY_CONTRACT, Family, Tiny


def _kinds(build: Build) -> Mapping[str, str]:
    """Block formats of the linear layers, as the GGUF has them."""
    decoder = build.manifest.decoder
    reader = gguf.GGUFReader(build.file(GGUF_MODEL))
    stored = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    names = gguf_names(decoder)
    return {spec.name: stored[names[spec.name]] for spec in linear_layers(decoder)}


def _left(build: Build, bits: float) -> tuple[float, int]:
    """Bytes that a budget of bits leaves free, and that the smallest layer of 4 bits would need."""
    sizes = {spec.name: spec.size for spec in linear_layers(build.manifest.decoder)}
    kinds = _kinds(build)
    reader = gguf.GGUFReader(build.file(GGUF_MODEL))
    names = {gguf_names(build.manifest.decoder)[name] for name in sizes}
    used = sum(int(tensor.n_bytes) for tensor in reader.tensors if tensor.name in names)
    narrow = [size // 2 for name, size in sizes.items() if kinds[name] == "Q4_0"]
    return bits * sum(sizes.values()) / 8 - used, min(narrow, default=0)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("bits", [4.5, 5.0, 6.3])
def test_bits_are_kept_to_the_byte(
    tiny_mixed: Callable[[Family, Budget], Build], family: Family, bits: float
) -> None:
    left, smallest = _left(tiny_mixed(family, Budget(bits=bits)), bits)
    assert 0 <= left < smallest


def test_real_weights_are_kept_to_the_byte(smollm2_at: Callable[[float], Build]) -> None:
    left, smallest = _left(smollm2_at(5.5), 5.5)
    assert 0 <= left < smallest


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("share", [0.0, 0.37, 1.0])
def test_a_target_size_is_kept_to_the_byte(
    tiny: Callable[..., Tiny],
    tiny_mixed: Callable[[Family, Budget], Build],
    family: Family,
    share: float,
    tmp_path: Path,
) -> None:
    least, most = (_largest(tiny_mixed(family, Budget(bits=bits))) for bits in (4.5, 8.5))
    size = least + int(share * (most - least))
    build = tiny_mixed(family, Budget(size=size))
    assert _largest(build) <= size
    for name, kind in _kinds(build).items():
        assert kind == "Q8_0" or _with_one_more(build, name) > size
    folder = tiny(family, tied=family == "llama").folder
    checkpoint = with_tokens(open_checkpoint(folder), TINY_CONTRACT)
    both = replace(_request(tmp_path / "x", budget=Budget(size=size)), formats=("onnx", "gguf"))
    plan = make_plan(checkpoint, both)
    assert plan.files["model.onnx"] + plan.files["weights.bin"] <= size


def _with_one_more(build: Build, name: str) -> int:
    """Bytes of the larger format if one more layer had 8 bits."""
    decoder = build.manifest.decoder
    formats: tuple[Format, ...] = ("onnx", "gguf")
    eight_bit = [*build.manifest.eight_bit, name]
    encodings = choose_encodings(decoder, "portable", formats, eight_bit, block_size=32)
    metadata = bytes(gguf.GGUFReader(build.file(GGUF_MODEL)).data_offset)
    return max(sum(file_sizes(f, decoder, encodings, metadata).values()) for f in formats)


def _largest(build: Build) -> int:
    return max(build.size("onnx"), build.size("gguf"))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_both_containers_have_8_bits_where_the_manifest_says(
    tiny_mixed: Callable[[Family, Budget], Build], family: Family
) -> None:
    build = tiny_mixed(family, Budget(bits=5.0))
    eight = set(build.manifest.eight_bit)
    assert eight
    assert {name for name, kind in _kinds(build).items() if kind == "Q8_0"} == eight
    graph = onnx.load(build.file(ONNX_GRAPH), load_external_data=False).graph
    bits = {
        node.input[1].removesuffix(".codes"): attribute.i
        for node in graph.node
        for attribute in node.attribute
        if node.op_type == "MatMulNBits" and attribute.name == "bits"
    }
    # Queries, keys and values of one encoding are one matrix, by the name of the first.
    assert {name for name in eight if name in bits} == {
        name for name, n in bits.items() if n == 8 and name.startswith("model.layers")
    }
    levels = {
        attribute.i
        for node in graph.node
        for attribute in node.attribute
        if attribute.name == "accuracy_level"
    }
    assert levels == {4}
    count = build.manifest.encodings["q8_0"]
    assert count == len(eight) + (1 if build.manifest.decoder.tied else 2)
    assert f"{len([n for n in eight if 'v_proj' in n])} v_proj" in (
        build.path / "README.md"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize("block_size", [32, 64])
@pytest.mark.parametrize("collected", [True, False])
def test_the_order_is_the_error_by_the_byte(
    checkpoint: Checkpoint, collected: bool, block_size: BlockSize
) -> None:
    """Of queries and keys little is left; beside a stream that grows, a branch counts less."""
    rows = [(5, 9, 260, 31), (7, 300, 2)]
    importance = collect(checkpoint, rows, "two rows").importance if collected else {}
    error, square, sizes = {}, {}, {}
    for spec in linear_layers(checkpoint.decoder):
        weights = checkpoint.rows(spec.name, 0, spec.shape[0])
        weigh = importance.get(spec.name, np.ones(spec.shape[1], np.float32)).astype(np.float64)
        found = quantize_4_bits(weights, importance.get(spec.name), block_size=block_size)
        four = _rounded(spec, FOUR_BITS[block_size], found)
        found = quantize_8_bits(weights, block_size=block_size)
        eight = _rounded(spec, EIGHT_BITS[block_size], found)
        sizes[spec.name] = spec.size
        square[spec.name] = (weights**2 @ weigh).sum()
        error[spec.name] = (((four - weights) ** 2 - (eight - weights) ** 2) @ weigh).sum()
    worth, stream = [], 0.0
    for layer in range(3):
        for kinds in ("qkvo", ("gate", "up", "down")):
            module = "self_attn" if kinds == "qkvo" else "mlp"
            names = [layer_name(layer, f"{module}.{kind}_proj") for kind in kinds]
            stream += square[names[-1]]
            reach = (square[names[-1]] / stream) ** 0.25 if collected else 1.0
            for kind, name in zip(kinds, names, strict=True):
                left = {"q": 0.25, "k": 0.5}.get(kind, 1) * reach
                worth.append((left * error[name] / square[name] / sizes[name], name))
    order = [spec.name for spec in by_worth(checkpoint, importance, block_size=block_size)]
    assert order == [name for _, name in sorted(worth, reverse=True)]


def _rounded(spec: TensorSpec, encoding: Encoding, blocks: Blocks) -> NDArray[np.float32]:
    codes, scales = blocks
    return dequantize(Slab(spec=spec, encoding=encoding, start=0, codes=codes, scales=scales))


def test_what_does_not_fit_is_passed_over(checkpoint: Checkpoint) -> None:
    """The widest layers first: none fits, and the small ones behind them do."""
    decoder = checkpoint.decoder
    widest = sorted(linear_layers(decoder), key=lambda spec: -spec.size)
    limit = find_limit(Budget(bits=4.6), decoder, "portable", ["onnx"], b"", block_size=32)
    chosen = choose_eight_bit(decoder, limit, widest)
    assert chosen == ("model.layers.0.self_attn.k_proj.weight",)


@pytest.mark.parametrize("format", ["onnx", "gguf"])
def test_cosines_rise_with_the_bits(smollm2_at: Callable[[float], Build], format: str) -> None:
    builds = [smollm2_at(4.5), smollm2_at(5.5), smollm2_at(8.5)]
    means = [build.manifest.verification.engines[format].cosine_mean for build in builds]
    assert means == sorted(means)
    assert means[0] < means[1] - 0.004
    assert means[2] > 0.995


def test_the_choice_beats_chance(
    smollm2_at: Callable[[float], Build],
    smollm2_gguf: Path,
    smollm2_statistics: Statistics,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many bytes of 8 bits, given to layers in a random order."""
    measured = smollm2_at(5.5)
    checkpoint = open_checkpoint(smollm2_gguf)
    request = Request(
        name="chance",
        destination=tmp_path / "chance",
        contract=PRESETS["chat"],
        formats=["gguf"],
        calibration=Calibration(statistics=smollm2_statistics),
        budget=Budget(bits=5.5),
        force=True,
    )
    means = []
    for seed in range(2):
        layers = list(linear_layers(measured.manifest.decoder))
        random.Random(seed).shuffle(layers)
        monkeypatch.setattr(pipeline, "by_worth", lambda *_, order=layers, **__: order)
        found = export(checkpoint, request).manifest.verification
        means.append(found.engines["gguf"].cosine_mean)
    assert measured.manifest.verification.engines["gguf"].cosine_mean > max(means)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"bits": 4.4}, r"4\.4 bits are out of reach: .* 4\.5 .* 8\.5"),
        ({"bits": 8.6}, "out of reach"),
        ({"bits": float("nan")}, "out of reach"),
        ({"size": 1000}, r"1,000 bytes is out of reach: .* \d+,\d+ bytes, .* \d+,\d+"),
        ({"size": 10**9}, "out of reach"),
        ({}, "give one of them"),
        ({"bits": 5.0, "size": 10**6}, "give one of them"),
    ],
)
def test_what_cannot_be_met_is_refused(
    budget: dict[str, float], message: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        _export(checkpoint, tmp_path / "x", budget=Budget(**budget))  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_a_float_build_has_no_budget(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="32 bits everywhere"):
        _export(checkpoint, tmp_path / "x", profile="float", budget=Budget(bits=5))


def test_another_budget_does_not_go_on_with_what_was_left(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    def interrupted(count: int) -> None:
        raise KeyboardInterrupt

    target, bars = tmp_path / "x", stage("quantizing", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _export(checkpoint, target, budget=Budget(bits=5.5), bars=bars)
    with pytest.raises(ExportError, match="other options"):
        _export(checkpoint, target, budget=Budget(bits=5), resume=True)
    resumed = _export(checkpoint, target, budget=Budget(bits=5.5), resume=True)
    fresh = _export(checkpoint, tmp_path / "fresh", budget=Budget(bits=5.5))
    assert resumed.manifest == fresh.manifest


def _request(destination: Path, **options: Any) -> Request:
    return Request(
        name="tiny",
        destination=destination,
        contract=TINY_CONTRACT,
        formats=("onnx",),
        allow_drift=True,
        **options,
    )


def _export(
    checkpoint: Checkpoint, destination: Path, bars: Bars = no_bars, **options: Any
) -> Build:
    return export(checkpoint, _request(destination, **options), bars=bars)


@pytest.fixture
def run(tiny: Callable[..., Tiny], tmp_path: Path) -> Callable[..., Result]:
    contract = tmp_path / "contract.json"
    contract.write_bytes(msgspec.json.encode(TINY_CONTRACT))
    texts = tmp_path / "texts.jsonl"
    texts.write_bytes(b'{"query": "the north", "thought": "lake"}\n{"document": "the weather"}\n')

    def invoke(*options: str) -> Result:
        arguments = ["export", str(tiny("llama").folder), "--contract", str(contract)]
        arguments += ["--output", str(tmp_path / "out"), "--format", "onnx", "--allow-drift"]
        if "rtn" not in options:
            arguments += ["--calibration", str(texts)]
        return CliRunner().invoke(main, [*arguments, *options])

    return invoke


@pytest.mark.parametrize("quantizer", ["search", "gptq", "rtn"])
def test_every_quantizer_takes_a_budget(
    run: Callable[..., Result], quantizer: str, tmp_path: Path
) -> None:
    found = run("--quantizer", quantizer, "--bits", "5.5")
    assert found.exit_code == 0, found.output
    assert "measuring what 4 bits cost" in found.stderr
    assert ("by the weights alone" in found.stderr) == (quantizer == "rtn")
    kinds = Counter(name.split(".")[-2] for name in Build(tmp_path / "out").manifest.eight_bit)
    assert kinds["v_proj"] == 3


def test_the_command_takes_a_size(run: Callable[..., Result], tmp_path: Path) -> None:
    plan = run("--target-size", "0.2MB", "--dry-run")
    assert plan.exit_code == 0, plan.output
    assert "is measured while it exports" in plan.stdout
    found = run("--target-size", "0.2MB", "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["onnx"] <= 200_000


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--bits", "5", "--target-size", "1MB"], 2, "exclude each other"),
        (["--target-size", "much"], 2, "'much' is no size"),
        (["--target-size", "1kB"], 1, "out of reach"),
        (["--bits", "3", "--dry-run"], 1, "out of reach"),
    ],
)
def test_the_command_refuses(
    run: Callable[..., Result], options: list[str], code: int, message: str
) -> None:
    found = run(*options)
    assert (found.exit_code, message in found.output) == (code, True), found.output
