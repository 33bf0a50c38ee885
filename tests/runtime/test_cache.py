"""Names in the cache stay in the cache."""

from pathlib import Path

import pytest

from t1_edge.build import MANIFEST
from t1_edge.cache import build_dir, checkpoint_dir, find_build, model_dir
from t1_edge.errors import CacheError, ContractError
from t1_edge_export.checkpoint import find_checkpoint
from t1_edge_export.contracts import find_contract

_BAD = ["", ".", "..", "../x", "a/b", "/etc", ".hidden", "a\\b", "a\0b", "x" * 201, "é" * 101]


@pytest.mark.parametrize("name", _BAD)
def test_a_name_cannot_lead_out_of_the_cache(own_cache: Path, name: str) -> None:
    for place in (build_dir, checkpoint_dir):
        with pytest.raises(CacheError, match="cannot be a name"):
            place(name)


@pytest.mark.parametrize("name", ["nano-2", "Qwen3 4B (mine)", "smollm2-135m.q4", "größe"])
def test_other_names_are_directories_of_it(own_cache: Path, name: str) -> None:
    assert build_dir(name) == own_cache / "builds" / name
    assert checkpoint_dir(name) == own_cache / "checkpoints" / name


def test_the_name_of_a_model_is_not_a_users(own_cache: Path) -> None:
    with pytest.raises(CacheError, match="give the build another name"):
        build_dir("nano")
    mine = own_cache / "builds" / "nano"
    mine.mkdir(parents=True)
    (mine / MANIFEST).touch()
    with pytest.raises(CacheError, match="t1-edge pull nano"):
        find_build("nano")
    model_dir("nano").mkdir(parents=True)
    (model_dir("nano") / MANIFEST).touch()
    assert find_build("nano") == model_dir("nano")


def test_who_asks_for_no_build_is_told_what_there_is(own_cache: Path) -> None:
    with pytest.raises(CacheError, match="there is none yet"):
        find_build("mine")
    for folder in (build_dir("other"), model_dir("nano")):
        folder.mkdir(parents=True)
        (folder / MANIFEST).touch()
    with pytest.raises(CacheError, match="builds there are: nano, other"):
        find_build("mine")
    checkpoint_dir("base").mkdir(parents=True)
    with pytest.raises(CacheError, match="t1-edge export base"):
        find_build("base")
    with pytest.raises(CacheError, match="t1-edge pull nano"):
        find_checkpoint("nano")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", ""])
def test_what_no_file_is_called_is_not_found(own_cache: Path, name: str) -> None:
    with pytest.raises(CacheError, match="no build"):
        find_build(name)
    with pytest.raises(ContractError, match="no contract"):
        find_contract(name)
    if name:  # "" is the present directory, as everywhere
        with pytest.raises(CacheError, match="no checkpoint"):
            find_checkpoint(name)
