"""The rooms: who may import whom, what is public, and what the wheel holds."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest

import t1_edge
from t1_edge import errors

ROOT = Path(__file__).parents[1]
UPWARD = {
    "runtime": {"t1_edge_export", "t1_edge_bench"},
    "export": {"t1_edge_bench"},
    "bench": set(),
}
WRITTEN = [*UPWARD, "recipes", "tests"]


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("room", UPWARD)
def test_imports_point_downward(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        assert not _imports(path) & UPWARD[room], path


def test_the_runtime_never_imports_torch() -> None:
    for path in (ROOT / "runtime").rglob("*.py"):
        assert not _imports(path) & {"torch", "transformers", "optimum", "onnx", "gguf"}, path


def test_modules_stay_small() -> None:
    for path in chain.from_iterable((ROOT / top).rglob("*.py") for top in WRITTEN):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


def test_the_public_names_are_pinned() -> None:
    names = ["DocumentEmbeddings", "Encoder", "QueryEmbedding", "Settle", "T1Error"]
    assert t1_edge.__all__ == [*names, "__version__"]
    for name in names:
        assert getattr(t1_edge, name) is not None
        assert name in dir(t1_edge)
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = t1_edge.nothing_here


def test_the_version_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == t1_edge.__version__
    assert f"## {t1_edge.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_error_is_drawn_in_the_tree() -> None:
    tree = errors.__doc__ or ""
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception):
            assert issubclass(value, errors.T1Error)
            assert name in tree


def test_the_wheel_holds_the_three_packages_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"t1_edge", "t1_edge_export", "t1_edge_bench"}
    assert "t1_edge_bench/data/pydoc_questions.jsonl" in names
    assert {f"{top}/py.typed" for top in tops} <= set(names)
