"""The graph for CUDA, checked without a GPU.

ONNX Runtime's CPU has float16 kernels for all of its operators but SiLU and the product behind it,
which it computes in float32 between casts of its own. So the graph runs here as it is, and must
compute what the weights say: the float reference over the quantized weights, read back from the
GGUF. What a GPU makes of it is docs/devices.md's.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import TensorProto

from t1_edge.build import (
    CUDA_GRAPH,
    GGUF_MODEL,
    GOLDEN,
    MANIFEST,
    ONNX_GRAPH,
    ONNX_WEIGHTS,
    Build,
)
from t1_edge.cli import main
from t1_edge.errors import BuildError, ExportError
from t1_edge.golden import Golden
from t1_edge.vectors import cosines
from t1_edge_export.checkpoint import open_checkpoint
from t1_edge_export.containers import BlockSize
from t1_edge_export.gguf_checkpoint import GGUFCheckpoint
from t1_edge_export.pipeline import export
from t1_edge_export.plan import make_plan
from t1_edge_export.reference import Reference
from t1_edge_export.request import Request
from t1_edge_export.vocabulary import with_tokens
from tiny import TINY_CONTRACT, Family, Tiny

Float32Array = NDArray[np.float32]

CUDA_FLOAT16_KERNELS = {
    ("", "Cast"), ("", "GatherND"), ("", "Mul"), ("", "Reshape"),
    ("", "SimplifiedLayerNormalization"), ("", "Split"),
    ("com.microsoft", "GatherBlockQuantized"), ("com.microsoft", "GroupQueryAttention"),
    ("com.microsoft", "MatMulNBits"), ("com.microsoft", "QuickGelu"),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"),
}  # fmt: skip
"""Of ONNX Runtime's OperatorKernels.md, the CUDAExecutionProvider's table."""

ROWS = [[5, 9, 200, 17, 42], [3], [7, 7, 8, 120, 33, 61, 250, 1, 90]]


@pytest.fixture(scope="module")
def cuda_build(
    tiny: Callable[..., Tiny], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Build]:
    root = tmp_path_factory.mktemp("cuda")

    def build(family: Family, tied: bool, block_size: BlockSize = 32) -> Build:
        path = root / f"{family}-{tied}-{block_size}"
        if path.exists():
            return Build(path)
        request = replace(_request(path), block_size=block_size)
        return export(open_checkpoint(tiny(family, tied=tied).folder), request)

    return build


def _request(path: Path) -> Request:
    return Request(
        name="tiny", destination=path, contract=TINY_CONTRACT, cuda=True, allow_drift=True
    )


class _Graph:
    """model.cuda.onnx on the CPU, with a KV cache of its own."""

    def __init__(self, build: Build, graph: str = CUDA_GRAPH, *, rows: int, capacity: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            build.file(graph), options, providers=["CPUExecutionProvider"]
        )
        decoder = build.manifest.decoder
        shape = (rows, decoder.kv_heads, capacity, decoder.head_dim)
        names = [f"{what}.{n}" for n in range(decoder.layers) for what in ("key", "value")]
        self._cache = {name: np.zeros(shape, np.float16) for name in names}
        self._lengths = np.zeros(rows, np.int32)

    def run(self, chunks: Sequence[Sequence[int]]) -> tuple[Float32Array, Float32Array]:
        """Hidden states and logits behind each row's chunk."""
        counts = np.array([len(chunk) for chunk in chunks], np.int32)
        ids = np.zeros((len(chunks), counts.max()), np.int64)
        for row, chunk in enumerate(chunks):
            ids[row, : len(chunk)] = chunk
        self._lengths += counts
        inputs = {
            "input_ids": ids,
            "query_seqlens": counts,
            "seqlens_k": self._lengths - 1,
            "total_sequence_length": np.array(self._lengths.max()),
            "last": counts[:, None].astype(np.int64) - 1,
            "scored": np.arange(len(chunks))[:, None],
        }
        past = {f"past_{name}": value for name, value in self._cache.items()}
        outputs = ["hidden", "logits", *(f"present_{name}" for name in self._cache)]
        hidden, logits, *present = self._session.run(outputs, inputs | past)
        self._cache = dict(zip(self._cache, present, strict=True))
        return hidden, logits


def _truth(build: Build, rows: Sequence[Sequence[int]]) -> tuple[Float32Array, Float32Array]:
    """Of the quantized weights, in float32."""
    reference = Reference(GGUFCheckpoint(build.file(GGUF_MODEL)))
    hidden = reference.hidden_states(rows)
    return hidden, reference.logits(hidden)


def _worst(found: Float32Array, expected: Float32Array) -> float:
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    return float(cosines(found / lengths, expected).min())


FAMILIES = pytest.mark.parametrize(("family", "tied"), [("llama", True), ("qwen3", False)])


@pytest.mark.parametrize("block_size", [32, 64])
@FAMILIES
def test_it_computes_what_the_weights_say(
    cuda_build: Callable[..., Build], family: Family, tied: bool, block_size: BlockSize
) -> None:
    build = cuda_build(family, tied, block_size)
    graph = _Graph(build, rows=3, capacity=10)
    graph.run([row[:-1] or row for row in ROWS])  # a ragged prefill
    whole = [row if len(row) > 1 else row * 2 for row in ROWS]
    hidden, logits = graph.run([row[-1:] for row in ROWS])
    expected_hidden, expected_logits = _truth(build, whole)
    assert hidden.dtype == logits.dtype == np.float32
    assert _worst(hidden, expected_hidden) > 0.9999
    assert _worst(logits, expected_logits) > 0.9999
    np.testing.assert_allclose(hidden, expected_hidden, rtol=0.02, atol=0.02)


def test_smollm2_computes_what_its_weights_say(smollm2: Build) -> None:
    rows = Golden.load(smollm2.file(GOLDEN)).rows
    hidden, logits = _Graph(smollm2, rows=len(rows), capacity=max(map(len, rows))).run(rows)
    expected_hidden, expected_logits = _truth(smollm2, rows)
    assert _worst(hidden, expected_hidden) > 0.9999
    assert _worst(logits, expected_logits) > 0.9999
    np.testing.assert_array_equal(logits.argmax(axis=1), expected_logits.argmax(axis=1))


def _swap_scales(model: onnx.ModelProto) -> None:
    """Two matrices of one shape take each other's scales."""
    found = {t.name: t for t in model.graph.initializer}
    names = [f"model.layers.{n}.mlp.gate_proj.weight.scales" for n in (0, 1)]
    one, other = (found[name].external_data for name in names)
    for a, b in zip(one, other, strict=True):
        a.value, b.value = b.value, a.value


def _stop_rotating(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "do_rotary":
                attribute.i = 0


def _forget_a_norm(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == "model.layers.1.post_attention_layernorm.weight":
            ones = np.ones(tuple(tensor.dims), np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(ones, tensor.name))


@pytest.mark.parametrize("damage", [_swap_scales, _stop_rotating, _forget_a_norm])
def test_a_wrong_graph_would_be_found(
    cuda_build: Callable[..., Build], damage: Callable[[onnx.ModelProto], None]
) -> None:
    build = cuda_build("llama", True)
    model = onnx.load(build.file(CUDA_GRAPH), load_external_data=False)
    damage(model)
    build.file("damaged.onnx").write_bytes(model.SerializeToString())
    hidden, _ = _Graph(build, "damaged.onnx", rows=3, capacity=9).run(ROWS)
    assert _worst(hidden, _truth(build, ROWS)[0]) < 0.9999


@FAMILIES
def test_it_is_the_cpus_graph_in_float16(
    cuda_build: Callable[..., Build], family: Family, tied: bool
) -> None:
    build = cuda_build(family, tied)
    graphs = [
        onnx.load(build.file(name), load_external_data=False).graph
        for name in (ONNX_GRAPH, CUDA_GRAPH)
    ]
    ops = [[n.op_type for n in graph.node if n.op_type != "Cast"] for graph in graphs]
    assert ops[0] == ops[1]
    used = {(node.domain, node.op_type) for node in graphs[1].node}
    assert used <= CUDA_FLOAT16_KERNELS
    stored = [
        {t.name: [(e.key, e.value) for e in t.external_data] for t in graph.initializer}
        for graph in graphs
    ]
    assert stored[0] == stored[1]  # the same bytes of weights.bin
    types = {t.data_type for t in graphs[1].initializer}
    assert types <= {TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT64}
    assert {v.type.tensor_type.elem_type for v in graphs[1].output} == {
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
    }


@FAMILIES
@pytest.mark.parametrize("graph", [ONNX_GRAPH, CUDA_GRAPH])
def test_the_checker_and_shape_inference_accept_it(
    cuda_build: Callable[..., Build], family: Family, tied: bool, graph: str
) -> None:
    build = cuda_build(family, tied)
    model = onnx.load(build.file(graph), load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "SimplifiedLayerNormalization":  # ONNX Runtime has it in ONNX's domain
            node.domain = "com.microsoft"
    build.file("checked.onnx").write_bytes(model.SerializeToString())
    onnx.checker.check_model(build.file("checked.onnx"), full_check=True)


def test_onnx_runtime_widens_the_scales_when_it_loads_the_cpus_graph(
    cuda_build: Callable[..., Build], tmp_path: Path
) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    options.log_severity_level = 3  # it warns that the file is for this machine
    onnxruntime.InferenceSession(
        cuda_build("llama", True).file(ONNX_GRAPH), options, providers=["CPUExecutionProvider"]
    )
    loaded = onnx.load(tmp_path / "loaded.onnx", load_external_data=False)
    assert "Cast" not in {node.op_type for node in loaded.graph.node}


def test_a_build_says_that_no_gate_ran_it(cuda_build: Callable[..., Build]) -> None:
    build = cuda_build("llama", True)
    assert build.has_cuda_graph
    assert set(build.manifest.verification.engines) == {"onnx", "gguf"}
    for text in (
        CliRunner().invoke(main, ["info", str(build.path)]).stdout,
        build.file("README.md").read_text(encoding="utf-8"),
    ):
        assert "no gate has run" in text
    sizes = {name: build.manifest.files[name].size for name in (ONNX_GRAPH, ONNX_WEIGHTS)}
    assert build.size("onnx") == sum(sizes.values())


def test_a_build_without_it_has_none(tiny_build: Callable[..., Build]) -> None:
    build = tiny_build("llama", "float")
    assert not build.has_cuda_graph
    assert "cuda" not in CliRunner().invoke(main, ["info", str(build.path)]).stdout


def test_a_graph_without_its_weights_is_no_build(
    cuda_build: Callable[..., Build], tmp_path: Path
) -> None:
    manifest = json.loads(cuda_build("llama", True).file(MANIFEST).read_bytes())
    manifest["formats"] = ["gguf"]
    del manifest["files"][ONNX_WEIGHTS]
    (tmp_path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(BuildError, match=r"does not list weights\.bin"):
        Build(tmp_path)


def test_the_plan_has_it(
    cuda_build: Callable[..., Build], tiny: Callable[..., Tiny], tmp_path: Path
) -> None:
    build = cuda_build("qwen3", False)
    checkpoint = with_tokens(open_checkpoint(tiny("qwen3", tied=False).folder), TINY_CONTRACT)
    plan = make_plan(checkpoint, _request(tmp_path / "x"))
    entry = build.manifest.files[CUDA_GRAPH]
    assert plan.files[CUDA_GRAPH] == pytest.approx(entry.size, abs=200)


def test_it_needs_quantized_onnx_weights(tiny: Callable[..., Tiny], tmp_path: Path) -> None:
    checkpoint, request = open_checkpoint(tiny("llama").folder), _request(tmp_path / "b")
    with pytest.raises(ExportError, match="ask for the format onnx"):
        export(checkpoint, replace(request, formats=("gguf",)))
    with pytest.raises(ExportError, match="float32 reference"):
        export(checkpoint, replace(request, profile="float"))
    arguments = ["export", str(tiny("llama").folder), "--cuda", "--format", "gguf", "--dry-run"]
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 1
    assert "ask for the format onnx" in found.stderr
