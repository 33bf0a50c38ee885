"""Published by one rename, or not at all."""

import os
from pathlib import Path

import pytest

from t1_edge.errors import ExportError
from t1_edge_export.staging import staged


def test_a_build_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "build"
    with staged(target, force=False) as staging:
        (staging / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert os.listdir(target.parent) == ["build"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(ExportError, match="nothing was published"),
        staged(tmp_path / "build", force=False) as staging,
    ):
        staging.write_text("a directory takes no text")
    assert os.listdir(tmp_path) == []


def test_what_stands_there_is_not_touched(tmp_path: Path) -> None:
    target = tmp_path / "build"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(ExportError, match="--force"), staged(target, force=False):
        pass
    with pytest.raises(ZeroDivisionError), staged(target, force=True):
        raise ZeroDivisionError
    assert (target / "old").read_text() == "old"
    assert os.listdir(tmp_path) == ["build"]


def test_force_replaces_it(tmp_path: Path) -> None:
    target = tmp_path / "build"
    target.mkdir()
    (target / "old").write_text("old")
    with staged(target, force=True) as staging:
        (staging / "new").write_text("new")
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["build"]


def test_a_parent_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ExportError, match="cannot write"),
        staged(tmp_path / "file" / "b", force=False),
    ):
        pass
