"""Float builds of tiny decoders give transformers' numbers, on both engines; so does Optimum."""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from t1_edge.build import Build, Format
from t1_edge.engines.select import open_engine
from t1_edge_export.checkpoint import open_checkpoint
from t1_edge_export.reference import Reference
from t1_edge_export.reference_engine import ReferenceEngine
from tiny import KNOWN, Family, Tiny

Float32Array = NDArray[np.float32]

RAGGED = [[1, 2, 3, 4, 5, 6, 7], [8] * 40, [9, 10, 11], list(range(20, 41)), list(range(50, 62))]
WRITTEN = [[60 + 7 * row + step for step in range(10)] for row in range(len(RAGGED))]
PEEKED = 5
FAMILIES = [("llama", True), ("llama", False), ("qwen3", True), ("qwen3", False)]

TOLERANCE = 1e-4  # relative to the largest number compared


def _truths(tiny: Tiny, rows: Sequence[Sequence[int]]) -> tuple[Float32Array, Float32Array]:
    hidden, logits = zip(*(tiny.truth(row) for row in rows), strict=True)
    return np.stack(hidden), np.stack(logits)


def _close(found: Float32Array, expected: Float32Array, tolerance: float = TOLERANCE) -> None:
    """Within the tolerance, relative to the size of the numbers."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, atol=tolerance, rtol=0)


@pytest.mark.parametrize("rows", [RAGGED[:1], RAGGED], ids=["one row", "five ragged rows"])
@pytest.mark.parametrize("format", ["onnx", "gguf"])
@pytest.mark.parametrize(("family", "tied"), FAMILIES)
def test_prefill_and_ten_steps(
    tiny: Callable[..., Tiny],
    tiny_build: Callable[..., Build],
    family: Family,
    tied: bool,
    format: Format,
    rows: list[list[int]],
) -> None:
    decoder = tiny(family, tied=tied)
    grown = [list(row) for row in rows]
    build = tiny_build(family, "float", tied=tied)
    with (
        closing(open_engine(build, engine=format, threads=1)) as engine,
        closing(engine.start(rows, room=12)) as session,
    ):
        for step in range(11):
            found, expected = session.logits(), _truths(decoder, grown)[1]
            _close(found[:, :KNOWN], expected[:, :KNOWN])
            if step in (0, 4, 10):
                ends = [[*row, PEEKED] for row in grown]
                _close(session.peek(PEEKED), _truths(decoder, ends)[0])
            if step < 10:
                session.append({row: WRITTEN[row][step] for row in range(len(rows))})
                for row, tokens in enumerate(grown):
                    tokens.append(WRITTEN[row][step])


@pytest.mark.parametrize(("family", "tied"), FAMILIES)
def test_the_numpy_reference(tiny: Callable[..., Tiny], family: Family, tied: bool) -> None:
    decoder = tiny(family, tied=tied)
    reference = Reference(open_checkpoint(decoder.folder))
    hidden, logits = _truths(decoder, RAGGED)
    found = reference.hidden_states(RAGGED)
    _close(found, hidden, 1e-5)
    _close(reference.logits(found), logits, 1e-5)


def test_the_reference_reads_shards_and_the_head_in_slabs(
    tiny: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = tiny("qwen3", tied=False, shard="100KB")
    assert len(list(decoder.folder.glob("*.safetensors"))) > 2
    slab = 100  # the head takes four, the last one short
    monkeypatch.setattr("t1_edge_export.reference.SLAB_ROWS", slab)
    reference = Reference(open_checkpoint(decoder.folder))
    _close(reference.logits(reference.hidden_states(RAGGED)), _truths(decoder, RAGGED)[1], 1e-5)


@pytest.mark.parametrize(("family", "tied"), FAMILIES)
def test_the_reference_writes_what_transformers_writes(
    tiny: Callable[..., Tiny], family: Family, tied: bool
) -> None:
    import torch

    decoder = tiny(family, tied=tied)
    engine = ReferenceEngine(open_checkpoint(decoder.folder))
    written: list[list[int]] = [[] for _ in RAGGED]
    with engine.start(RAGGED, room=8) as session:
        for _ in range(8):
            best = session.logits().argmax(axis=1).tolist()
            session.append(dict(enumerate(best)))
            for row, token in zip(written, best, strict=True):
                row.append(token)
    for row, tokens in zip(RAGGED, written, strict=True):
        ids = torch.tensor([row])
        whole = decoder.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert tokens == whole[0, len(row) :].tolist()


@pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python boolean")
@pytest.mark.filterwarnings("ignore:Exporting aten..index operator:UserWarning")
@pytest.mark.parametrize(("family", "tied"), FAMILIES)
def test_optimums_graphs_agree(
    tiny: Callable[..., Tiny],
    tiny_build: Callable[..., Build],
    family: Family,
    tied: bool,
    tmp_path: Path,
) -> None:
    decoder = tiny(family, tied=tied)
    hidden = _run_optimum(decoder.folder, tmp_path / "hidden", "feature-extraction", RAGGED)
    logits = _run_optimum(decoder.folder, tmp_path / "logits", "text-generation", RAGGED)
    reference = Reference(open_checkpoint(decoder.folder))
    found = reference.hidden_states(RAGGED)
    for states, scores in (
        _truths(decoder, RAGGED),
        (found, reference.logits(found)),
        _run_own(tiny_build(family, "float", tied=tied), RAGGED),
    ):
        _close(states, hidden)
        _close(scores[:, :KNOWN], logits[:, :KNOWN])


def _run_own(build: Build, rows: list[list[int]]) -> tuple[Float32Array, Float32Array]:
    """Hidden states and logits at each row's last token, by our own ONNX graph."""
    with closing(open_engine(build, engine="onnx", threads=1)) as engine:
        with closing(engine.start(rows, room=1)) as session:
            logits = session.logits()
        hidden = []
        for row in rows:
            with closing(engine.start([row[:-1]], room=1)) as session:
                hidden.append(session.peek(row[-1])[0])
    return np.stack(hidden), logits


def _run_optimum(folder: Path, output: Path, task: str, rows: list[list[int]]) -> Float32Array:
    """What the graph that Optimum exports for a task gives at each row's last token."""
    import onnxruntime
    from optimum.exporters.onnx import main_export

    main_export(str(folder), output, task=task, do_validation=False)
    session: Any = onnxruntime.InferenceSession(output / "model.onnx")
    names = [value.name for value in session.get_inputs()]
    found = []
    for row in rows:
        ids = np.array([row], np.int64)
        every = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(len(row))[None],
        }
        outputs = session.run(None, {name: every[name] for name in names})
        found.append(outputs[0][0, -1])
    return np.stack(found)
