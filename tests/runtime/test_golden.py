"""Golden vectors: stored without pickle, checked once, and an error when they do not come out."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest

from t1_edge.build import GOLDEN, MANIFEST, Build, Format, file_entry
from t1_edge.encoder import Encoder
from t1_edge.engines.select import open_engine
from t1_edge.errors import BuildError, EngineError
from t1_edge.golden import Golden, check


@pytest.fixture
def build(tiny_build: Callable[..., Build], tmp_path: Path, own_cache: Path) -> Build:
    """A build of the test's own, to be damaged."""
    shutil.copytree(tiny_build("llama", "float").path, tmp_path / "build")
    return Build(tmp_path / "build")


def _rewrite(build: Build, golden: Golden) -> Build:
    """The build with other golden vectors, hashes and all."""
    golden.save(build.file(GOLDEN))
    manifest = json.loads((build.path / MANIFEST).read_bytes())
    manifest["files"][GOLDEN] = msgspec.to_builtins(file_entry(build.file(GOLDEN)))
    (build.path / MANIFEST).write_text(json.dumps(manifest))
    return Build(build.path)


def test_golden_rows_come_back(tmp_path: Path) -> None:
    vectors = np.eye(3, dtype=np.float32)
    golden = Golden(
        rows=[[1, 2], [3, 2], [4, 5, 6]],
        vectors=vectors,
        texts=["a", "", "é 水"],
        thoughts=["b", "c d", ""],
        roles=["query", "query", "document"],
    )
    golden.save(tmp_path / "golden.npz")
    found = Golden.load(tmp_path / "golden.npz")
    np.testing.assert_array_equal(found.vectors, vectors)
    for field in ("rows", "texts", "thoughts", "roles"):
        assert getattr(found, field) == getattr(golden, field)


@pytest.mark.parametrize("damage", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_damaged_archive_is_a_build_error(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "golden.npz").write_bytes(damage)
    with pytest.raises(BuildError, match="damaged"):
        Golden.load(tmp_path / "golden.npz")


@pytest.mark.parametrize("broken", [{"rows": [[1, 2]]}, {"rows": []}, {"rows": [[1, 2], [3]]}])
def test_rows_that_do_not_belong_to_their_vectors_are_refused(
    tmp_path: Path, broken: dict[str, list[list[int]]]
) -> None:
    golden = Golden(
        rows=[[1, 2], [3, 2]],
        vectors=np.eye(2, dtype=np.float32),
        texts=["a", "b"],
        thoughts=["", ""],
        roles=["query", "document"],
    )
    if broken["rows"]:
        dataclasses.replace(golden, rows=broken["rows"]).save(tmp_path / "golden.npz")
    else:
        np.savez(tmp_path / "golden.npz", tokens=[], offsets=[0], vectors=golden.vectors)
    with pytest.raises(BuildError, match="damaged"):
        Golden.load(tmp_path / "golden.npz")


@pytest.mark.parametrize("format", ["onnx", "gguf"])
def test_a_sound_build_gives_them(build: Build, format: Format) -> None:
    with closing(open_engine(build, engine=format)) as engine:
        assert check(build, engine) > 0.9999


@pytest.mark.parametrize("format", ["onnx", "gguf"])
def test_another_vector_is_an_error_that_names_build_and_engine(
    build: Build, format: Format
) -> None:
    golden = Golden.load(build.file(GOLDEN))
    golden.vectors[0] *= -1
    damaged = _rewrite(build, golden)
    library = {"onnx": "onnxruntime", "gguf": r"llama\.cpp"}[format]
    with pytest.raises(EngineError, match=rf"{build.path}.*{library}"):
        Encoder.load(damaged.path, engine=format)


def test_a_build_is_checked_when_it_is_new_to_an_engine(build: Build, own_cache: Path) -> None:
    def marks() -> int:
        return len(list((own_cache / "checked").glob("*")))

    Encoder.load(build.path, engine="onnx").close()
    assert marks() == 1
    Encoder.load(build.path, engine="onnx").close()
    assert marks() == 1
    Encoder.load(build.path, engine="gguf").close()
    assert marks() == 2
    build.file(GOLDEN).touch()
    Encoder.load(build.path, engine="onnx").close()
    assert marks() == 3


def test_they_hold_queries_with_thoughts_and_documents(build: Build) -> None:
    golden = Golden.load(build.file(GOLDEN))
    assert set(golden.roles) == {"query", "document"}
    assert any(golden.thoughts)
    emb = {row[-1] for row in golden.rows}
    assert len(emb) == 1
