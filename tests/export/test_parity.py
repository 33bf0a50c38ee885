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
        closing(open_engine(build, engine=format, threads=2)) as engine,
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


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_reference_writes_what_transformers_writes(
    tiny: Callable[..., Tiny], family: Family
) -> None:
    import torch

    decoder = tiny(family)
    found = Reference(open_checkpoint(decoder.folder)).greedy(RAGGED, budget=8, stop=frozenset())
    for row, written in zip(RAGGED, found, strict=True):
        ids = torch.tensor([row])
        whole = decoder.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert list(written) == whole[0, len(row) :].tolist()


def test_the_reference_stops_where_it_is_told(tiny: Callable[..., Tiny]) -> None:
    reference = Reference(open_checkpoint(tiny("llama").folder))
    free = reference.greedy(RAGGED, budget=6, stop=frozenset())
    stop = frozenset({free[0][2], free[3][0]})
    stopped = reference.greedy(RAGGED, budget=6, stop=stop)
    for whole, cut in zip(free, stopped, strict=True):
        ends = [at for at, token in enumerate(whole) if token in stop]
        assert cut == whole[: ends[0] if ends else 6]


@pytest.mark.filterwarnings("ignore")  # torch's and Optimum's exporters warn of their own making
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_optimums_graph_agrees(
    tiny: Callable[..., Tiny],
    tiny_build: Callable[..., Build],
    family: Family,
    tmp_path: Path,
) -> None:
    decoder = tiny(family)
    theirs = _run_optimum(decoder.folder, tmp_path, RAGGED)
    _close(theirs, _truths(decoder, RAGGED)[0], 1e-4)
    build = tiny_build(family, "float")
    with closing(open_engine(build, engine="onnx", threads=2)) as engine:
        rows = [row[:-1] for row in RAGGED]
        for row, last, expected in zip(rows, [r[-1] for r in RAGGED], theirs, strict=True):
            with closing(engine.start([row], room=1)) as session:
                _close(session.peek(last)[0], expected, 1e-4)


def _run_optimum(folder: Path, output: Path, rows: list[list[int]]) -> Float32Array:
    """Hidden states at each row's last token, by the graph that Optimum exports."""
    import onnxruntime
    from optimum.exporters.onnx import main_export

    main_export(str(folder), output, task="feature-extraction", do_validation=False)
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
        outputs = session.run(["last_hidden_state"], {name: every[name] for name in names})
        found.append(outputs[0][0, -1])
    return np.stack(found)
