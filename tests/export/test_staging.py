"""Published by one rename, or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from t1_edge.build import MANIFEST
from t1_edge.errors import ExportError
from t1_edge_export.staging import Staging, claimed
from t1_edge_export.staging import staged as staged_in


@contextmanager
def staged(destination: Path, *, force: bool = False, resume: bool = False) -> Iterator[Staging]:
    with claimed(destination, force=force) as claim, staged_in(claim, resume=resume) as staging:
        yield staging


def test_a_build_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "build"
    with staged(target) as staging:
        (staging.directory / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert os.listdir(target.parent) == ["build"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(ExportError, match="nothing was published"),
        staged(tmp_path / "build") as staging,
    ):
        staging.directory.write_text("a directory takes no text")
    assert os.listdir(tmp_path) == []


def test_what_stands_there_is_not_touched(tmp_path: Path) -> None:
    target = tmp_path / "build"
    target.mkdir()
    (target / MANIFEST).write_text("old")
    with pytest.raises(ExportError, match="--force"), staged(target):
        pass
    with pytest.raises(ZeroDivisionError), staged(target, force=True):
        raise ZeroDivisionError
    assert (target / MANIFEST).read_text() == "old"
    assert os.listdir(tmp_path) == ["build"]


def test_force_replaces_it(tmp_path: Path) -> None:
    target = tmp_path / "build"
    target.mkdir()
    (target / MANIFEST).write_text("old")
    with staged(target, force=True) as staging:
        (staging.directory / "new").write_text("new")
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["build"]


def _build(folder: Path, words: str) -> None:
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(words)


def test_a_build_whose_replacement_was_killed_comes_back(tmp_path: Path) -> None:
    """Between two renames the old one is away, and the new one not yet there."""
    partial = tmp_path / ".build.partial"
    _build(partial / "replaced", "old")
    (partial / "build").mkdir()
    with pytest.raises(ExportError, match="--force"), staged(tmp_path / "build"):
        pass
    assert (tmp_path / "build" / MANIFEST).read_text() == "old"
    with staged(tmp_path / "build", force=True) as staging:
        (staging.directory / MANIFEST).write_text("new")
    assert (tmp_path / "build" / MANIFEST).read_text() == "new"
    assert os.listdir(tmp_path) == ["build"]


@pytest.mark.parametrize("resume", [False, True])
def test_what_a_replacement_left_is_cleared_away(tmp_path: Path, resume: bool) -> None:
    """Killed behind the second rename, with the old build still beside the new one."""
    _build(tmp_path / "build", "new")
    _build(tmp_path / ".build.partial" / "replaced", "old")
    with staged(tmp_path / "build", force=True, resume=resume) as staging:
        (staging.directory / MANIFEST).write_text("newest")
    assert (tmp_path / "build" / MANIFEST).read_text() == "newest"
    assert os.listdir(tmp_path) == ["build"]


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_build_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one").write_text("1")
    (tmp_path / "file").write_text("2")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    monkeypatch.chdir(tmp_path / "photos")
    targets = (Path(), tmp_path / "photos", tmp_path / "file", tmp_path / "nowhere")
    for target in targets:
        with pytest.raises(ExportError, match="is no build"), staged(target, force=force):
            pass
    assert (tmp_path / "photos" / "one").read_text() == "1"
    assert sorted(os.listdir(tmp_path)) == ["file", "nowhere", "photos"]


def test_a_build_is_replaced_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / MANIFEST).write_text("old")
    monkeypatch.chdir(tmp_path / "build")
    with staged(Path(), force=True) as staging:
        (staging.directory / "new").write_text("new")
    assert os.listdir(tmp_path / "build") == ["new"]


def test_a_parent_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ExportError, match="cannot write"),
        staged(tmp_path / "file" / "b"),
    ):
        pass


def test_work_that_fails_before_anything_is_staged_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path / "deep" / "build"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_work_that_fails_leaves_what_was_left_before(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "build"):
        raise KeyboardInterrupt
    left = sorted(os.listdir(tmp_path / ".build.partial"))
    assert "journal.jsonl" in left
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "build"):
        raise ZeroDivisionError
    assert sorted(os.listdir(tmp_path / ".build.partial")) == left


def test_what_is_not_staged_is_not_published(tmp_path: Path) -> None:
    with claimed(tmp_path / "build"):
        pass
    assert os.listdir(tmp_path) == []
