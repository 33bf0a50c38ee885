"""What is said of a build that misses its bounds."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from t1_edge.build import DOCUMENTS_WEIGHTS
from t1_edge.errors import ExportError, GateError
from t1_edge_export import gate
from t1_edge_export.checkpoint import Checkpoint, open_checkpoint
from t1_edge_export.gate import BOUNDS
from t1_edge_export.golden_texts import DOCUMENTS
from t1_edge_export.onnx_reader import DocumentsWeights
from t1_edge_export.pipeline import export
from t1_edge_export.quantize.calibration import Calibration
from t1_edge_export.quantize.smoothing import Smoothing
from t1_edge_export.quantize.statistics import Statistics
from t1_edge_export.request import Request
from tiny import TINY_CONTRACT, Tiny, noise_importance

TENSOR = r"model\.layers\.\d\.\w+\.\w+\.weight \(\d\.\d% off\)"


@pytest.fixture
def request_(checkpoint: Checkpoint, tmp_path: Path) -> Request:
    noise = noise_importance(checkpoint.decoder)
    statistics = Statistics(importance=noise, tokens=1, dataset="noise")
    return Request(
        name="tiny",
        destination=tmp_path / "build",
        contract=TINY_CONTRACT,
        calibration=Calibration(statistics=statistics),
        formats=("onnx",),
        documents=True,
    )


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that 4 bits of noise meet, and the graph for documents does not."""
    bounds = msgspec.structs.replace(
        BOUNDS["portable"],
        cosine_mean=0, cosine_min=-1, divergence=100, documents_mean=0, documents_min=1,
    )  # fmt: skip
    monkeypatch.setattr(gate, "BOUNDS", {**BOUNDS, "portable": bounds})


@pytest.mark.usefixtures("strict")
def test_a_miss_of_the_documents_names_their_texts_and_tensors(
    checkpoint: Checkpoint, request_: Request, tmp_path: Path
) -> None:
    with pytest.raises(GateError) as caught:
        export(checkpoint, request_)
    found = re.fullmatch(
        r"not published, the build misses its bounds: the graph for documents: worst cosine to the "
        r"float reference \S+, must be 1; furthest from the reference in documents are the texts "
        rf"(.*) and the tensors {TENSOR}, {TENSOR}, {TENSOR}; --allow-drift .*",
        str(caught.value),
    )
    assert found, caught.value
    assert sum(repr(text) in found[1] for text in DOCUMENTS) == 3
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("strict")
def test_where_drift_is_allowed_the_worst_is_said_too(
    checkpoint: Checkpoint, request_: Request
) -> None:
    said: list[str] = []
    build = export(checkpoint, replace(request_, allow_drift=True), say=said.append)
    verification = build.manifest.verification
    assert verification.drift_allowed
    [line] = (line for line in said if line.startswith("published all the same"))
    assert "the graph for documents: worst cosine" in line
    assert "in onnx" not in line
    _, _, texts = line.partition("furthest from the reference in documents are the texts ")
    assert sum(repr(text) in texts for text in DOCUMENTS) == 3
    figures = verification.documents
    assert figures is not None
    assert figures.floor < figures.cosine_min <= figures.cosine_mean < 1


def test_documents_that_are_cut_off_are_no_weights(
    tiny: Callable[..., Tiny], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny("llama").folder)
    (tmp_path / DOCUMENTS_WEIGHTS).write_bytes(bytes(64))
    found = DocumentsWeights(tmp_path, checkpoint.decoder, Smoothing(), checkpoint)
    with pytest.raises(ExportError, match=rf"cannot read .*{DOCUMENTS_WEIGHTS}"):
        found.rows("model.layers.2.mlp.down_proj.weight", 0, 2)
