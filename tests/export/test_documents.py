"""The graph that reads documents: the checkpoint's weights, in 8 bits by row."""

import json
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from t1_edge.build import (
    DOCUMENTS_GRAPH,
    DOCUMENTS_WEIGHTS,
    ONNX_WEIGHTS,
    Build,
    Decoder,
    Format,
)
from t1_edge.cli import main
from t1_edge.encoder import Encoder
from t1_edge.engines import onnx as onnx_engine
from t1_edge.engines import opening, select
from t1_edge.engines.base import Engine
from t1_edge.engines.opening import open_documents
from t1_edge.engines.race import Pace
from t1_edge.errors import (
    BuildError,
    DeviceError,
    EngineError,
    InputError,
    MissingExtraError,
)
from t1_edge.machine import has_vnni
from t1_edge_export import slabs
from t1_edge_export.checkpoint import open_checkpoint
from t1_edge_export.decoder import TensorSpec, linear_layers
from t1_edge_export.formats import choose_encodings
from t1_edge_export.onnx_documents import by_row, lay_out_documents, write_documents
from t1_edge_export.onnx_reader import DocumentsWeights
from t1_edge_export.pipeline import export
from t1_edge_export.plan import make_plan
from t1_edge_export.precision import Budget
from t1_edge_export.quantize.calibration import Calibration
from t1_edge_export.quantize.quantizer import weighted
from t1_edge_export.quantize.smooth_quant import smooth
from t1_edge_export.quantize.smoothing import Smoothing
from t1_edge_export.quantize.statistics import Statistics
from t1_edge_export.request import Request
from t1_edge_export.vocabulary import with_tokens
from tiny import TINY_CONTRACT, Family, Tiny, noise_importance

TEXTS = ["the water of the lake", "", "north " * 40, "a <emb_token> in the text", "weather"]
FAMILIES = pytest.mark.parametrize("family", ["llama", "qwen3"])


@pytest.fixture(scope="module")
def documents_build(
    tiny: Callable[..., Tiny], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Family], Build]:
    root = tmp_path_factory.mktemp("documents")

    def build(family: Family) -> Build:
        path = root / family
        if path.exists():
            return Build(path)
        checkpoint = with_tokens(open_checkpoint(tiny(family).folder), TINY_CONTRACT)
        noise = _noise(checkpoint.decoder)
        request = replace(_request(path), calibration=Calibration(statistics=noise))
        return export(checkpoint, request)

    return build


def _noise(decoder: Decoder) -> Statistics:
    return Statistics(importance=noise_importance(decoder), tokens=1, dataset="noise")


def _request(path: Path) -> Request:
    return Request(
        name="tiny",
        destination=path,
        contract=TINY_CONTRACT,
        budget=Budget(bits=6.0),
        documents=True,
        allow_drift=True,
    )


class _Stored:
    def __init__(self, held: NDArray[np.float32]) -> None:
        self._held = held

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        return self._held[start:stop]


def test_a_row_shares_a_scale_and_loses_a_250th() -> None:
    spec = TensorSpec(name="x", shape=(8, 96), role="linear")
    weights = np.random.default_rng(0).standard_normal(spec.shape).astype(np.float32)
    weights[3] = 0
    weights[4] = 2e-43  # whose scale is no longer a number that divides exactly
    codes, scales = by_row(spec, _Stored(weights), Smoothing(), 2)
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(int)).max() == 127
    assert (scales > 0).sum() == 7
    largest = np.abs(weights).max(axis=1, keepdims=True)
    assert (np.abs(codes.T * scales[:, None] - weights) <= largest / 250 + 1e-43).all()


def test_slabs_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = TensorSpec(name="x", shape=(8, 96), role="linear")
    draw = np.random.default_rng(0)
    weights = draw.standard_normal(spec.shape).astype(np.float32)
    factors = np.exp(draw.normal(0, 1, 8)).astype(np.float32)
    smoothing = Smoothing(outputs={"x": factors})
    whole = by_row(spec, _Stored(weights), smoothing, 2)
    monkeypatch.setattr(slabs, "SLAB_WEIGHTS", 2 * 96)
    for part, expected in zip(by_row(spec, _Stored(weights), smoothing, 2), whole, strict=True):
        np.testing.assert_array_equal(part, expected)


@FAMILIES
def test_the_graph_reads_and_writes_nothing(
    documents_build: Callable[[Family], Build], family: Family
) -> None:
    build = documents_build(family)
    model = onnx.load(build.file(DOCUMENTS_GRAPH), load_external_data=False)
    assert "hidden" in [output.name for output in model.graph.output]
    assert "logits" not in [output.name for output in model.graph.output]
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["MatMulIntegerToFloat"] == 7 * build.manifest.decoder.layers
    assert kinds["QuantizeLinear"] == 4 * build.manifest.decoder.layers  # what is shared, once
    assert "MatMulNBits" not in kinds
    at = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert at == {DOCUMENTS_WEIGHTS, ONNX_WEIGHTS}


@FAMILIES
def test_documents_are_read_by_it_queries_are_not(
    documents_build: Callable[[Family], Build],
    tiny: Callable[..., Tiny],
    family: Family,
    own_cache: Path,
    tmp_path: Path,
) -> None:
    exact = replace(
        _request(tmp_path / "float"),
        profile="float",
        formats=("onnx",),
        budget=None,
        documents=False,
    )
    with Encoder.load(export(open_checkpoint(tiny(family).folder), exact).path) as encoder:
        truth = encoder.encode_documents(TEXTS)
    near: dict[str, NDArray[np.float32]] = {}
    for graph in get_args(select.ReadingGraph):
        path = documents_build(family).path
        with Encoder.load(path, engine="onnx", threads=1, documents=graph) as encoder:
            documents = encoder.embed_documents(TEXTS)
            assert encoder.read_by() == documents.engine
            assert documents.engine.graph == graph
            assert encoder.encode_query("the lake", budget=0).engine.graph == "everything"
            alone = np.concatenate([encoder.encode_documents([text]) for text in TEXTS])
        np.testing.assert_allclose(documents.vectors, alone, atol=1e-4, rtol=0)
        near[graph] = (documents.vectors * truth).sum(axis=1)
    assert near["documents"].min() > 0.98
    assert near["documents"].mean() > near["everything"].mean()


@FAMILIES
def test_kernels_that_sum_up_otherwise_give_the_same(
    documents_build: Callable[[Family], Build], family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Integers are summed up without loss, with instructions for it and without."""
    build = documents_build(family)
    options: list[Any] = []
    session = onnxruntime.InferenceSession

    def noted(graph: Path, given: Any, **kwargs: Any) -> Any:
        options.append(given)
        return session(graph, given, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
    found = []
    for vnni in (True, False) if has_vnni() else (False, False):
        monkeypatch.setattr(onnx_engine, "has_vnni", lambda vnni=vnni: vnni)
        with closing(open_documents(build.path, build.manifest.decoder, threads=1)) as engine:
            with engine.start([[5, 6, 7, 8], [9, 10]], room=1) as rows:
                found.append(rows.peek(3))
    np.testing.assert_array_equal(found[0], found[1])
    assert options[-1].get_session_config_entry("session.x64quantprecision") == "1"
    if has_vnni():
        with pytest.raises(RuntimeError, match="does not have"):
            options[0].get_session_config_entry("session.x64quantprecision")


@pytest.mark.parametrize("engine", ["onnx", "gguf"])
@pytest.mark.parametrize("graph", get_args(select.ReadingGraph))
def test_a_graph_can_be_asked_for(
    documents_build: Callable[[Family], Build],
    own_cache: Path,
    graph: select.ReadingGraph,
    engine: Format,
) -> None:
    path = documents_build("llama").path
    with Encoder.load(path, engine=engine, threads=1, documents=graph) as encoder:
        found = encoder.embed_documents(["x"])
        assert found.engine.graph == graph
        assert found.engine.engine == ("onnx" if graph == "documents" else engine)
        with pickle.loads(pickle.dumps(encoder)) as again:
            assert again.read_by() == found.engine


@pytest.mark.parametrize(
    ("asked", "faster", "graph"),
    [
        ("auto", "gguf", "documents"),
        ("auto", "onnx", "documents"),
        ("onnx", "onnx", "documents"),
        ("gguf", "gguf", "everything"),
    ],
)
def test_it_stands_beside_what_was_not_asked_for_by_name(
    documents_build: Callable[[Family], Build],
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: select.EngineChoice,
    faster: Format,
    graph: str,
) -> None:
    paces = {name: Pace(reading=1.0 + (name != faster), step=0.0) for name in ("onnx", "gguf")}
    monkeypatch.setattr(select, "race", lambda *_, **__: paces)
    with Encoder.load(documents_build("llama").path, engine=asked, threads=1) as encoder:
        assert encoder.info.engine == faster
        assert encoder.read_by().graph == graph
        with pickle.loads(pickle.dumps(encoder)) as again:
            assert (again.info, again.read_by()) == (encoder.info, encoder.read_by())


def test_it_runs_on_the_cpu_where_onnx_runtime_is(
    documents_build: Callable[[Family], Build],
    tiny_build: Callable[..., Build],
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build = documents_build("llama")
    with pytest.raises(BuildError, match="export it with --documents"):
        Encoder.load(tiny_build("llama", "portable").path, threads=1, documents="documents")
    with pytest.raises(InputError, match="no graph 'onnx'"):
        Encoder.load(build.path, threads=1, documents="onnx")  # type: ignore[arg-type]
    graph = partial(select.reading_graph, build, "gguf", engine="auto")
    assert graph("cpu", asked="auto") == "documents"
    assert graph("cuda", asked="auto") == "everything"
    with pytest.raises(DeviceError, match="ONNX Runtime's on the CPU"):
        graph("cuda", asked="documents")
    monkeypatch.setattr(opening, "find_spec", lambda name: name == "llama_cpp" or None)
    assert graph("cpu", asked="auto") == "everything"
    with pytest.raises(MissingExtraError, match="onnxruntime"):
        graph("cpu", asked="documents")


def test_what_reads_documents_is_closed_with_the_encoder(
    documents_build: Callable[[Family], Build], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Engine] = []

    def noted(*args: object, **kwargs: object) -> Engine:
        opened.append(open_documents(*args, **kwargs))  # type: ignore[arg-type]
        return opened[-1]

    monkeypatch.setattr(select, "open_documents", noted)
    with Encoder.load(documents_build("llama").path, engine="onnx", threads=1) as encoder:
        encoder.encode_documents(["x"])
    with pytest.raises(EngineError, match="closed"):
        opened[0].start([[1, 2]], room=1)


def test_commands_tell_of_it(documents_build: Callable[[Family], Build], own_cache: Path) -> None:
    build = str(documents_build("llama").path)
    assert "a graph in onnx that reads them" in CliRunner().invoke(main, ["info", build]).stdout
    found = CliRunner().invoke(main, ["encode", "--build", build, "lake", "--json"])
    assert json.loads(found.stdout)["engine"].startswith("onnxruntime")
    every = ["encode", "--build", build, "lake", "--json", "--document-graph", "everything"]
    assert json.loads(CliRunner().invoke(main, every).stdout)["graph"] == "everything"
    found = CliRunner().invoke(main, ["doctor", build, "--json"])
    assert json.loads(found.stdout)["chosen"]["documents"] == "documents"


def test_verify_runs_it_too(documents_build: Callable[[Family], Build], own_cache: Path) -> None:
    found = CliRunner().invoke(main, ["verify", str(documents_build("qwen3").path)])
    assert found.exit_code == 0, found.output
    assert "documents: worst golden cosine" in found.stdout


def test_a_graph_without_its_weights_is_damage(
    documents_build: Callable[[Family], Build], tmp_path: Path
) -> None:
    shutil.copytree(documents_build("llama").path, tmp_path / "build")
    (tmp_path / "build" / DOCUMENTS_WEIGHTS).unlink()
    with pytest.raises(BuildError, match=r"documents\.bin is missing"):
        Build(tmp_path / "build")


@pytest.mark.parametrize(
    ("formats", "profile", "message"),
    [(("gguf",), "portable", "ask for the format onnx"), (("onnx",), "float", "rounds nothing")],
)
def test_what_cannot_have_it_is_refused(
    tiny: Callable[..., Tiny],
    tmp_path: Path,
    formats: tuple[str, ...],
    profile: str,
    message: str,
) -> None:
    arguments = ["export", str(tiny("llama").folder), "--output", str(tmp_path / "x")]
    arguments += ["--format", ",".join(formats), "--profile", profile, "--documents"]
    found = CliRunner().invoke(main, [*arguments, "--calibration", "none", "--contract", "chat"])
    assert found.exit_code == 1
    assert message in found.stderr


def test_the_plan_knows_its_files(
    documents_build: Callable[[Family], Build], tiny: Callable[..., Tiny], tmp_path: Path
) -> None:
    build = documents_build("qwen3")
    plan = make_plan(
        with_tokens(open_checkpoint(tiny("qwen3").folder), TINY_CONTRACT), _request(tmp_path / "x")
    )
    for name in (DOCUMENTS_GRAPH, DOCUMENTS_WEIGHTS):
        assert plan.files[name] == build.manifest.files[name].size


@FAMILIES
@pytest.mark.parametrize("smoothed", [False, True])
def test_its_weights_are_the_checkpoints(
    tiny: Callable[..., Tiny], tmp_path: Path, family: Family, smoothed: bool
) -> None:
    """Whatever the other files are rounded to, and by however much channels are divided."""
    checkpoint = with_tokens(open_checkpoint(tiny(family).folder), TINY_CONTRACT)
    decoder = checkpoint.decoder
    before, importance = Smoothing(), noise_importance(decoder)
    if smoothed:
        quantizer = weighted(_noise(decoder), decoder)
        before, importance = quantizer.smoothing, dict(quantizer.importance())
    written = before.applied(checkpoint)
    write_documents(
        tmp_path,
        written,
        choose_encodings(decoder, "portable", ["onnx"], block_size=32),
        importance,
        longest=200,
    )
    raw = (tmp_path / DOCUMENTS_WEIGHTS).read_bytes()
    places, behind = lay_out_documents(decoder), smooth(decoder, written, importance)
    reader = DocumentsWeights(tmp_path, decoder, behind, written)
    for spec in linear_layers(decoder):
        place, rows = places[spec.name], spec.shape[0]
        codes = np.frombuffer(raw, np.int8, spec.size, place.codes).reshape(-1, rows).T
        scales = np.frombuffer(raw, np.float32, rows, place.scales)
        found = codes * scales[:, None]
        middle = reader.rows(spec.name, 3, rows - 3)
        np.testing.assert_allclose(middle, _undone(found, behind, spec.name)[3:-3], rtol=1e-5)
        lost = np.abs(found).max(axis=1, keepdims=True) / 250
        for smoothing in (before, behind):
            found, lost = (_undone(part, smoothing, spec.name) for part in (found, lost))
        plain = checkpoint.rows(spec.name, 0, rows)
        assert (np.abs(found - plain) <= lost + 1e-6).all(), spec.name


def _undone(weights: NDArray[Any], smoothing: Smoothing, name: str) -> NDArray[Any]:
    one = np.ones(1, np.float32)
    return (weights.T * smoothing.outputs.get(name, one)).T / smoothing.inputs.get(name, one)
