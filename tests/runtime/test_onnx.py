"""What ONNX Runtime computes of a graph, as its own profile has it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from t1_edge.build import Build, Profile
from t1_edge.engines.onnx import OnnxEngine

ROWS = [[5, 6, 7, 8], [9, 10]]


@pytest.mark.parametrize("profile", ["float", "portable"])
def test_logits_are_computed_where_they_are_wanted(
    tiny_build: Callable[..., Build], tmp_path: Path, profile: Profile
) -> None:
    build = tiny_build("llama", profile)
    engine = OnnxEngine(build.path, build.manifest.decoder, threads=1, profile=tmp_path / "run")
    with engine.start(ROWS, room=2) as session:
        direct = session.peek(4)
        session.logits()
        session.append({0: 3})
        later = session.peek(4)
    engine.close()
    [written] = tmp_path.iterdir()
    events = json.loads(written.read_bytes())
    shapes = [
        event["args"]["output_type_shape"][0]["float"]
        for event in events
        if event["name"] == "logits_kernel_time"
    ]
    vocabulary = build.manifest.decoder.vocabulary
    assert shapes[-3:] == [[0, vocabulary], [len(ROWS), vocabulary], [0, vocabulary]]
    assert not np.array_equal(direct[0], later[0])
    assert np.isfinite(direct).all()


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
