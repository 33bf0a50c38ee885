"""nano: what ships is what `t1-edge pull nano` builds, once."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

import t1_edge_export.models as module
from t1_edge import cache as places
from t1_edge.build import MANIFEST, Build
from t1_edge.cache import checkpoint_dir, model_dir
from t1_edge.cli import main
from t1_edge.encoder import Encoder
from t1_edge.errors import ExportError, MissingExtraError
from t1_edge_bench import demo, pydoc
from t1_edge_export.checkpoint import PULLED
from t1_edge_export.models import MODELS, formats_here
from t1_edge_export.staging import check_free
from tiny import TINY_CONTRACT, Tiny

NANO = MODELS["nano"]


@pytest.fixture
def cache(nano: Build, smollm2_gguf: Path, own_cache: Path) -> Path:
    """A cache that has the base and nano's build, without copies of either."""
    for link, target in (
        (checkpoint_dir("smollm2-135m") / PULLED, smollm2_gguf),
        (model_dir("nano"), nano.path),
    ):
        link.parent.mkdir(parents=True)
        link.symlink_to(target)
    return own_cache


def _pull(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["pull", *arguments])


def test_the_runtime_keeps_the_names_of_what_ships() -> None:
    assert tuple(MODELS) == places.MODELS
    assert all(model.name == name for name, model in MODELS.items())


def test_what_ships_is_small() -> None:
    sizes = {path.name: path.stat().st_size for path in NANO.folder.iterdir()}
    assert sizes["adapter_model.safetensors"] < 20e6
    assert sizes["statistics.gguf"] < 1e6
    assert {"adapter_config.json", "LICENSES.md"} <= sizes.keys()


def test_nano_passes_the_gate_with_what_ships(nano: Build) -> None:
    manifest = nano.manifest
    assert manifest.formats == ("onnx", "gguf")
    assert manifest.calibration.startswith("importance ")
    assert len(manifest.eight_bit) > 30  # values among them
    assert manifest.source.id.endswith(" + nano")
    assert not manifest.verification.drift_allowed


def test_its_adapter_is_of_its_base(cache: Path) -> None:
    said: list[str] = []
    NANO.open(said.append)
    assert said == []


def test_nanos_engines_agree(nano: Build) -> None:
    """On vectors of the same tokens; the gate's bound is for any checkpoint, and wider."""
    assert nano.manifest.verification.cross_engine_min is not None
    assert nano.manifest.verification.cross_engine_min >= 0.999


def test_a_second_pull_finds_the_first(cache: Path, nano: Build) -> None:
    found = _pull("--json")  # nano is the default
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["fingerprint"] == nano.manifest.fingerprint
    assert "in the cache" in found.stderr


@pytest.mark.parametrize("changed", ["adapter_model.safetensors", "adapter_config.json"])
def test_what_is_in_the_cache_must_be_what_ships(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: str
) -> None:
    assert NANO.cached(["onnx", "gguf"]) is not None
    for path in NANO.folder.iterdir():
        shutil.copy(path, tmp_path)
    assert replace(NANO, folder=tmp_path).cached(["onnx"]) is not None
    with (tmp_path / changed).open("ab") as file:
        file.write(b" ")
    assert replace(NANO, folder=tmp_path).cached(["onnx"]) is None
    monkeypatch.setattr(module, "__version__", "next")
    assert NANO.cached(["onnx"]) is None


def _keep_only(cache: Path, nano: Build, **changed: object) -> None:
    """Put a copy of nano's build in the cache, with another manifest."""
    copy = cache / "copy"
    copy.mkdir()
    for path in nano.path.iterdir():
        (copy / path.name).symlink_to(path)
    (copy / MANIFEST).unlink()
    manifest = msgspec.structs.replace(nano.manifest, **changed)
    (copy / MANIFEST).write_bytes(manifest.to_json())
    model_dir("nano").unlink()
    copy.rename(model_dir("nano"))


def test_a_damaged_build_is_not_taken(cache: Path, nano: Build) -> None:
    _keep_only(cache, nano)
    weights = model_dir("nano") / "weights.bin"
    damaged = bytearray(weights.read_bytes())
    damaged[1000] ^= 1
    weights.unlink()
    weights.write_bytes(damaged)
    assert NANO.cached(["onnx", "gguf"]) is None


def test_a_build_of_one_engine_is_not_enough_for_two(cache: Path, nano: Build) -> None:
    _keep_only(cache, nano, formats=("onnx",))
    assert NANO.cached(["onnx"]) is not None
    assert NANO.cached(["onnx", "gguf"]) is None


def test_the_build_of_another_installation_is_not_taken_away(cache: Path, nano: Build) -> None:
    _keep_only(cache, nano, formats=("gguf",))
    with pytest.raises(ExportError, match="install the engine of gguf too"):
        NANO.cached(["onnx"])


@pytest.mark.parametrize("changed", [{"calibration": ""}, {"contract": TINY_CONTRACT}])
def test_what_changes_vectors_makes_a_new_build(
    cache: Path, nano: Build, changed: dict[str, object]
) -> None:
    _keep_only(cache, nano, **changed)
    assert NANO.cached(["onnx", "gguf"]) is None


def test_a_build_of_an_older_schema_is_replaced(own_cache: Path) -> None:
    model_dir("nano").mkdir(parents=True)
    (model_dir("nano") / MANIFEST).write_text('{"schema": 5}')
    assert NANO.cached(["onnx", "gguf"]) is None
    check_free(model_dir("nano"), force=True)


def test_nobody_else_is_called_nano(own_cache: Path, tiny: Callable[..., Tiny]) -> None:
    found = CliRunner().invoke(main, ["export", str(tiny("llama").folder), "--name", "nano"])
    assert found.exit_code == 1
    assert "give the build another name" in found.stderr
    assert not own_cache.exists()


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


@pytest.mark.parametrize("budget", [None, 16])
@pytest.mark.parametrize("engine", ["onnx", "gguf"])
def test_nano_finds_facts(nano: Build, engine: str, budget: int | None) -> None:
    """Questions written for the test, whose answers hardly share a word with them."""
    with Encoder.load(nano.path, engine=engine, cache=False) as encoder:  # type: ignore[arg-type]
        facts = encoder.encode_documents(list(QUESTIONS.values()))
        found = encoder.encode_queries(list(QUESTIONS), budget=budget)
    scores = facts @ np.stack([query.vector for query in found]).T
    assert scores.argmax(axis=0).tolist() == list(range(len(QUESTIONS)))


def test_nano_thinks_only_when_it_is_asked_to(nano: Build) -> None:
    assert nano.manifest.contract.budget == 0
    questions = [question.text for question in pydoc.questions()[:40]]
    with Encoder.load(nano.path, engine="onnx", cache=False) as encoder:
        assert not any(query.thought for query in encoder.encode_queries(questions))
        found = encoder.encode_queries(questions, budget=16)
    assert any(query.thought for query in found)
    assert {query.stopped_by for query in found} <= {"closed", "budget", "stop_token"}


def test_the_demo_shows_what_nano_thinks(nano: Build) -> None:
    row, answers = demo.measure(nano, "onnx", lambda text: None, lambda passages: None)
    assert row.ndcg > demo.baseline().ndcg
    thoughts = [answer.thought.split() for answer in answers]
    assert sum(map(bool, thoughts)) > len(thoughts) / 2
    assert {len(answer.topics) for answer in answers} == {3}
    assert all(set(answer.right) <= set(answer.topics) for answer in answers)
    assert any(answer.right for answer in answers)
