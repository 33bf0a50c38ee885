"""nano: what ships is what `t1-edge pull nano` builds, once."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

import t1_edge_export.models as module
from t1_edge.build import MANIFEST, Build
from t1_edge.cache import build_dir, checkpoint_dir
from t1_edge.cli import main
from t1_edge.encoder import Encoder
from t1_edge.errors import ExportError, MissingExtraError
from t1_edge_export.checkpoint import PULLED
from t1_edge_export.models import MODELS, formats_here

NANO = MODELS["nano"]


@pytest.fixture
def cache(nano: Build, smollm2_gguf: Path, own_cache: Path) -> Path:
    """A cache that has the base and nano's build, without copies of either."""
    for link, target in (
        (checkpoint_dir("smollm2-135m") / PULLED, smollm2_gguf),
        (build_dir("nano"), nano.path),
    ):
        link.parent.mkdir(parents=True)
        link.symlink_to(target)
    return own_cache


def _pull(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["pull", *arguments])


def test_what_ships_is_small() -> None:
    sizes = {path.name: path.stat().st_size for path in NANO.folder.iterdir()}
    assert sizes["adapter_model.safetensors"] < 20e6
    assert sizes["statistics.gguf"] < 1e6
    assert {"adapter_config.json", "LICENSES.md"} <= sizes.keys()


def test_nano_passes_the_gate_with_what_ships(nano: Build) -> None:
    manifest = nano.manifest
    assert manifest.formats == ("onnx", "gguf")
    assert manifest.calibration.startswith("importance: ")
    assert manifest.source.id.endswith(" + nano")
    assert not manifest.verification.drift_allowed


def test_a_second_pull_finds_the_first(cache: Path, nano: Build) -> None:
    found = _pull("--json")  # nano is the default
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["fingerprint"] == nano.manifest.fingerprint
    assert "in the cache" in found.stderr


def test_what_is_in_the_cache_must_be_what_ships(
    cache: Path, nano: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert NANO.cached(["onnx", "gguf"]) is not None
    (tmp_path / "adapter_model.safetensors").write_bytes(b"another")
    assert replace(NANO, folder=tmp_path).cached(["onnx"]) is None
    monkeypatch.setattr(module, "__version__", "next")
    assert NANO.cached(["onnx"]) is None


def test_a_build_of_one_engine_is_not_enough_for_two(cache: Path, nano: Build) -> None:
    copy = cache / "one"
    copy.mkdir()
    for path in nano.path.iterdir():
        (copy / path.name).symlink_to(path)
    one = msgspec.structs.replace(nano.manifest, formats=("onnx",))
    (copy / MANIFEST).unlink()
    (copy / MANIFEST).write_bytes(one.to_json())
    build_dir("nano").unlink()
    copy.rename(build_dir("nano"))
    assert NANO.cached(["onnx"]) is not None
    assert NANO.cached(["onnx", "gguf"]) is None


def test_a_build_of_something_else_is_not_replaced(
    cache: Path, tiny_build: Callable[..., Build]
) -> None:
    build_dir("nano").unlink()
    build_dir("nano").symlink_to(tiny_build("llama", "portable").path)
    found = _pull("nano")
    assert found.exit_code == 1
    assert "will not be replaced" in found.stderr
    checkpoint = NANO.open(lambda text: None)
    with pytest.raises(ExportError, match="move it away"):
        NANO.request(checkpoint, ["onnx"])
    build_dir("nano").unlink()
    assert NANO.request(checkpoint, ["onnx"]).destination == build_dir("nano")


def test_without_an_engine_pull_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed_engines", list)
    with pytest.raises(MissingExtraError, match="onnxruntime"):
        formats_here()


QUESTIONS = {
    "Why does a puddle disappear on a hot day?": "evaporation turns liquid water into a gas",
    "What do plants need in order to make their food?": "photosynthesis requires light energy",
    "Which force makes a dropped ball fall?": "gravity pulls objects toward the earth",
    "Why does an iron nail left outside turn brown?": "oxidation of a metal is a kind of rust",
}


@pytest.mark.parametrize("engine", ["onnx", "gguf"])
def test_nano_finds_facts_and_thinks(nano: Build, engine: str) -> None:
    """Questions written for the test, whose answers hardly share a word with them."""
    with Encoder.load(nano.path, engine=engine) as encoder:  # type: ignore[arg-type]
        facts = encoder.encode_documents(list(QUESTIONS.values()))
        found = encoder.encode_queries(list(QUESTIONS))
    scores = facts @ np.stack([query.vector for query in found]).T
    assert scores.argmax(axis=0).tolist() == list(range(len(QUESTIONS)))
    assert any(query.thought for query in found)
    assert {query.stopped_by for query in found} <= {"closed", "budget"}
