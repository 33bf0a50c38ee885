"""Statistics of linear layers: what is collected, what is stored, and what they are good for."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from t1_edge.build import GGUF_MODEL
from t1_edge.errors import CheckpointError, ExportError
from t1_edge_export.checkpoint import Checkpoint, Weights, open_checkpoint
from t1_edge_export.decoder import TensorSpec, linear_layers
from t1_edge_export.gguf_checkpoint import GGUFCheckpoint
from t1_edge_export.pipeline import export
from t1_edge_export.quantize.calibration import Calibration
from t1_edge_export.quantize.quantizer import block_grams
from t1_edge_export.quantize.smoothing import Smoothing
from t1_edge_export.quantize.statistics import Statistics, collect, read_statistics
from t1_edge_export.request import Request
from tiny import TINY_CONTRACT, Tiny

ROWS = [(5, 9, 260, 31), (7,), (300, 2, 41, 8, 90, 11)]
Float32Array = NDArray[np.float32]


@pytest.fixture
def statistics(checkpoint: Checkpoint) -> Statistics:
    return collect(checkpoint, ROWS, "three rows")


def _inputs(model: torch.nn.Module, rows: Sequence[Sequence[int]]) -> dict[str, Float32Array]:
    """What transformers gives its linear layers, by tensor, [tokens, in]."""
    found: dict[str, list[Float32Array]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            found.setdefault(f"{name}.weight", []).append(inputs[0][0].numpy())

        return hook

    hooks = [
        module.register_forward_pre_hook(keep(name))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith("model.")
    ]
    with torch.no_grad():
        for row in rows:
            model(torch.tensor([row]))
    for hook in hooks:
        hook.remove()
    return {name: np.concatenate(parts) for name, parts in found.items()}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_they_are_the_mean_squares_of_transformers(family: str, tiny: Callable[..., Tiny]) -> None:
    found = collect(open_checkpoint(tiny(family).folder), ROWS, "three rows")
    expected = _inputs(tiny(family).model, ROWS)
    assert found.tokens == 11
    assert found.importance.keys() == expected.keys()
    for name, inputs in expected.items():
        np.testing.assert_allclose(found.importance[name], (inputs**2).mean(axis=0), rtol=1e-3)


def test_the_file_gives_back_what_was_saved(
    statistics: Statistics, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    statistics.save(tmp_path / "s.gguf", checkpoint.decoder)
    again = read_statistics(tmp_path / "s.gguf", checkpoint.decoder)
    assert (again.tokens, again.dataset) == (11, "three rows")
    for name, means in statistics.importance.items():
        np.testing.assert_allclose(again.importance[name], means, rtol=1e-6)
    # As llama.cpp names and shapes them.
    stored = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "s.gguf").tensors}
    assert stored["blk.0.ffn_down.weight.counts"].tolist() == [[11.0]]
    assert stored["blk.0.ffn_down.weight.in_sum2"].shape == (1, checkpoint.decoder.intermediate)


def test_other_figures_have_another_digest(statistics: Statistics) -> None:
    name, means = next(iter(statistics.importance.items()))
    other = dataclasses.replace(statistics, importance={**statistics.importance, name: means * 2})
    assert other.digest != statistics.digest
    same = dataclasses.replace(statistics, importance=dict(sorted(statistics.importance.items())))
    assert same.digest == statistics.digest


def test_they_lower_the_error_of_what_layers_give(
    statistics: Statistics, checkpoint: Checkpoint, tiny: Callable[..., Tiny], tmp_path: Path
) -> None:
    inputs = _inputs(tiny("llama").model, ROWS)
    request = Request(
        name="tiny",
        destination=tmp_path / "plain",
        contract=TINY_CONTRACT,
        formats=("gguf",),
        allow_drift=True,
    )
    asked = dataclasses.replace(
        request,
        destination=tmp_path / "weighted",
        calibration=Calibration(statistics=statistics),
    )
    twice = dataclasses.replace(
        request,
        destination=tmp_path / "gptq",
        calibration=Calibration(kind="gptq", rows=ROWS, dataset="three rows"),
    )
    builds = [export(checkpoint, wanted) for wanted in (request, asked, twice)]
    found = [build.manifest.calibration for build in builds]
    known = f"importance {statistics.digest}, channels smoothed: three rows"
    compensated_for = "GPTQ 9de3a4b5da7c: three rows"
    assert found == ["", known, compensated_for]
    assert compensated_for in (builds[2].path / "README.md").read_text(encoding="utf-8")
    assert len({build.manifest.fingerprint for build in builds}) == 3
    files = [GGUFCheckpoint(build.path / GGUF_MODEL) for build in builds]
    fitted = [wanted.calibration.fit(checkpoint) for wanted in (request, asked, twice)]
    errors = [
        [
            _error(spec, checkpoint, file, quantizer.smoothing, inputs[spec.name])
            for file, quantizer in zip(files, fitted, strict=True)
        ]
        for spec in linear_layers(checkpoint.decoder)
    ]
    plain, weighed, made_up = np.array(errors).T
    assert (weighed < plain).mean() > 0.5
    assert weighed.sum() < plain.sum()
    assert (made_up < 0.5 * weighed).all()  # eleven tokens leave it much freedom


def _error(
    spec: TensorSpec,
    checkpoint: Checkpoint,
    written: Weights,
    smoothing: Smoothing,
    inputs: Float32Array,
) -> float:
    """Squared error of what a layer gives, of channels as they are without smoothing."""
    rows = spec.shape[0]
    lost = written.rows(spec.name, 0, rows) - smoothing.applied(checkpoint).rows(spec.name, 0, rows)
    divided = inputs / smoothing.inputs.get(spec.name, np.float32(1))
    given = divided @ lost.T * smoothing.outputs.get(spec.name, np.float32(1))
    return float(np.square(given).sum())


def test_grams_are_those_of_transformers(checkpoint: Checkpoint, tiny: Callable[..., Tiny]) -> None:
    expected = _inputs(tiny("llama").model, ROWS)
    blocks = list(block_grams(checkpoint, ROWS))
    assert len(blocks) == checkpoint.decoder.layers
    found = {name: gram for block in blocks for name, gram in block.items()}
    assert found.keys() == expected.keys()
    for name, inputs in expected.items():
        np.testing.assert_allclose(found[name], inputs.T @ inputs, atol=2e-3)


def test_those_of_another_model_are_refused(
    statistics: Statistics, checkpoint: Checkpoint, tiny: Callable[..., Tiny], tmp_path: Path
) -> None:
    statistics.save(tmp_path / "s.gguf", checkpoint.decoder)
    wider = msgspec.structs.replace(checkpoint.decoder, intermediate=256)
    with pytest.raises(CheckpointError, match=r"no statistics of blk\.0\.ffn_down.* 256 channels"):
        read_statistics(tmp_path / "s.gguf", wider)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_sums_that_are_no_squares_are_refused(
    value: float, statistics: Statistics, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    means = statistics.importance[name].copy()
    means[3] = value
    damaged = dataclasses.replace(statistics, importance={**statistics.importance, name: means})
    damaged.save(tmp_path / "s.gguf", checkpoint.decoder)
    with pytest.raises(CheckpointError, match=r"damaged.*blk\.1\.ffn_up"):
        read_statistics(tmp_path / "s.gguf", checkpoint.decoder)


def test_a_gguf_without_statistics_is_refused(checkpoint: Checkpoint, smollm2_gguf: Path) -> None:
    with pytest.raises(CheckpointError, match="no importance matrix"):
        read_statistics(smollm2_gguf, checkpoint.decoder)


def test_where_nothing_can_be_written_it_says_so(
    statistics: Statistics, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="cannot write"):
        statistics.save(tmp_path / "missing" / "s.gguf", checkpoint.decoder)
