"""Attention in a graph: tile by tile, or to all tokens at once."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from t1_edge.build import ONNX_GRAPH, ONNX_WEIGHTS, Build, Decoder
from t1_edge.engines.onnx import OnnxEngine
from t1_edge.engines.places import READER
from t1_edge_export.checkpoint import open_checkpoint
from t1_edge_export.decoder import tensors
from t1_edge_export.formats import choose_encodings
from t1_edge_export.journal import NOTHING, Journal
from t1_edge_export.onnx_documents import documents_graph, write_documents
from t1_edge_export.onnx_graph import GraphWriter
from t1_edge_export.onnx_layout import lay_out
from t1_edge_export.onnx_nodes import Nodes
from t1_edge_export.onnx_products import BlockProducts
from t1_edge_export.quantize.quantizer import ROUNDING
from t1_edge_export.vocabulary import with_tokens
from t1_edge_export.weights import write_files
from tiny import TINY_CONTRACT, Family, Tiny

ROWS = [[token % 380 for token in range(5, 5 + count)] for count in (180, 3, 64)]


def _whole(build: Build, folder: Path) -> Path:
    """A float build's graph, written again for attention to all tokens at once."""
    decoder = build.manifest.decoder
    stored = onnx.load(build.file(ONNX_GRAPH), load_external_data=False).graph.initializer
    norms = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in stored
        if tensor.name.endswith("norm.weight")
    }
    assert norms.keys() == {spec.name for spec in tensors(decoder) if spec.role == "norm"}
    nodes = Nodes()
    encodings = choose_encodings(decoder, "float", ["onnx"], block_size=32)
    products = BlockProducts(nodes, lay_out(decoder, encodings), "float32")
    onnx.save(GraphWriter(decoder, nodes, products, norms, tiled=False).model(), folder / "g")
    (folder / "g").rename(folder / ONNX_GRAPH)
    os.link(build.file(ONNX_WEIGHTS), folder / ONNX_WEIGHTS)
    return folder


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_both_find_the_same(
    tiny_build: Callable[..., Build], tmp_path: Path, family: Family
) -> None:
    build = tiny_build(family, "float")
    found = []
    for directory in (build.path, _whole(build, tmp_path)):
        engine = OnnxEngine(directory, build.manifest.decoder, threads=1)
        with engine.start(ROWS, room=3) as session:
            scores = session.logits()
            session.append({0: 3, 2: 4})
            found.append((scores, session.logits(), session.peek(4, 5)))
        engine.close()
    for tiled, whole in zip(*found, strict=True):
        assert np.abs(tiled).max() > 0.1
        np.testing.assert_allclose(whole, tiled, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_documents_by_tiles_are_the_same_documents(
    tiny: Callable[..., Tiny], tmp_path: Path, family: Family
) -> None:
    checkpoint = with_tokens(open_checkpoint(tiny(family).folder), TINY_CONTRACT)
    decoder = checkpoint.decoder
    encodings = choose_encodings(decoder, "portable", ["onnx"], block_size=32)
    journal = Journal.open(tmp_path / "journal.jsonl", NOTHING)
    write_files(tmp_path, ["onnx"], checkpoint, encodings, ROUNDING, journal)
    found = []
    for longest in (200, 10**5):
        write_documents(tmp_path, checkpoint, encodings, {}, longest=longest)
        engine = OnnxEngine(tmp_path, decoder, threads=1, place=READER)
        engine.prime([ROWS[0][:2]])
        with engine.start(ROWS, room=1) as session:
            states = session.peek(4)
        engine.close()
        found.append(states / np.linalg.norm(states, axis=1, keepdims=True))
    whole, tiled = found
    assert ((whole * tiled).sum(axis=1) > 0.999).all()


def _decoder(heads: int) -> Decoder:
    return Decoder(
        family="llama",
        hidden=32 * heads,
        layers=2,
        heads=heads,
        kv_heads=1,
        head_dim=32,
        intermediate=64,
        vocabulary=64,
        positions=4096,
        rope_theta=1e4,
        norm_epsilon=1e-6,
        tied=True,
    )


@pytest.mark.parametrize(
    ("heads", "longest", "at_once"), [(32, 1024, True), (32, 1025, False), (8, 2048, True)]
)
def test_a_long_document_is_attended_to_by_tiles(heads: int, longest: int, at_once: bool) -> None:
    """Scores of all its pairs would be more than 128 MiB."""
    decoder = _decoder(heads)
    encodings = choose_encodings(decoder, "portable", ["onnx"], block_size=32)
    norms = {
        spec.name: np.zeros(spec.shape, np.float32)
        for spec in tensors(decoder)
        if spec.role == "norm"
    }
    graph = onnx.load_from_string(documents_graph(decoder, encodings, norms, longest)).graph
    attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    assert [node.input[11] for node in attention] == ["sink" if at_once else ""] * 2
    assert ("sink" in [tensor.name for tensor in graph.initializer]) == at_once
