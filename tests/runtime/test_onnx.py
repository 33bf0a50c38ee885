"""What ONNX Runtime computes of a graph, as its own profile has it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from t1_edge.build import Build, Profile
from t1_edge.engines.onnx import OnnxEngine
from t1_edge.engines.places import PLACES

ROWS = [[5, 6, 7, 8], [9, 10]]


def _heads(
    build: Build, folder: Path, rows: list[list[int]], *, skips: bool, twin: bool = False
) -> list[int]:
    """Over how many rows the head ran: looked at, read, and a token later looked at again."""
    place = replace(PLACES["cpu"], skips=skips)
    decoder = build.manifest.decoder
    engine = OnnxEngine(build.path, decoder, threads=1, place=place, profile=folder / "run")
    engine.twin = twin
    with engine.start(rows, room=2) as session:
        session.peek(4)
        session.logits()
        session.append({0: 3})
        session.peek(4)
    engine.close()
    [written] = folder.iterdir()
    shapes = [
        event["args"]["output_type_shape"][0]["float"]
        for event in json.loads(written.read_bytes())
        if event["name"] == "logits_kernel_time"
    ]
    assert {width for _, width in shapes} == {decoder.vocabulary}
    return [count for count, _ in shapes[-3:]]


@pytest.mark.parametrize("profile", ["float", "portable"])
def test_logits_are_computed_where_they_are_wanted(
    tiny_build: Callable[..., Build], tmp_path: Path, profile: Profile
) -> None:
    assert _heads(tiny_build("llama", profile), tmp_path, ROWS, skips=True) == [0, 2, 0]


def test_a_row_is_scored_with_its_twin(tiny_build: Callable[..., Build], tmp_path: Path) -> None:
    """Only the row's last token runs for its logits, since the look has cached it."""
    build = tiny_build("llama", "portable")
    assert _heads(build, tmp_path, ROWS[:1], skips=True, twin=True) == [0, 2, 0]


def test_where_no_kernels_are_known_to_skip_all_rows_are_scored(
    tiny_build: Callable[..., Build], tmp_path: Path
) -> None:
    assert _heads(tiny_build("llama", "portable"), tmp_path, ROWS, skips=False) == [2, 2, 2]
    assert [name for name, place in PLACES.items() if place.skips] == ["cpu"]


def test_a_look_is_the_same_with_a_head_and_without(tiny_build: Callable[..., Build]) -> None:
    build = tiny_build("qwen3", "portable")
    found: list[NDArray[np.float32]] = []
    for skips in (False, True):
        place = replace(PLACES["cpu"], skips=skips)
        engine = OnnxEngine(build.path, build.manifest.decoder, threads=1, place=place)
        with engine.start(ROWS, room=2) as session:
            found.append(session.peek(4))
        engine.close()
    with_head, without = found
    np.testing.assert_array_equal(without, with_head)


def test_nothing_is_written_by_itself(
    tiny_build: Callable[..., Build], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build = tiny_build("llama", "portable")
    engine = OnnxEngine(build.path, build.manifest.decoder, threads=1)
    with engine.start(ROWS, room=1) as session:
        session.peek(4)
    engine.close()
    assert not list(tmp_path.iterdir())
