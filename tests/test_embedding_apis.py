"""What docs/embedding-apis.md shows runs, as far as its libraries are installed."""

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t1_edge.build import Build

ROOT = Path(__file__).parents[1]
BLOCKS: list[str] = re.findall(
    r"```python\n(.*?)```",
    (ROOT / "docs" / "embedding-apis.md").read_text(encoding="utf-8"),
    flags=re.DOTALL,
)


@pytest.fixture
def run(tiny_build: Callable[..., Build], own_cache: Path) -> Callable[[str], dict[str, Any]]:
    path = repr(str(tiny_build("llama", "portable").path))

    def execute(library: str) -> dict[str, Any]:
        if library != "t1_edge" and find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
        [lines] = [block for block in BLOCKS if re.match(rf"(from|import) {library}\b", block)]
        found: dict[str, Any] = {}
        exec(lines.replace('"nano"', path), found)
        return found

    return execute


def test_sentence_transformers_names(run: Callable[[str], dict[str, Any]]) -> None:
    found = run("t1_edge")
    assert found["queries"].shape == found["documents"].shape == (2, 64)
    assert found["scores"].shape == (2, 2)
    np.testing.assert_allclose(found["one"], found["documents"][1], atol=0.05)
    found["encoder"].close()


def test_mteb(run: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("mteb"):
        asked: list[object] = []
        monkeypatch.setattr("mteb.get_tasks", asked.append)
        monkeypatch.setattr("mteb.evaluate", lambda model, tasks: model.mteb_model_meta)
        assert run("mteb")["results"].experiment_kwargs["budget"] == 16
        assert asked == [["NFCorpus"]]
    else:
        run("mteb")


def test_langchain(run: Callable[[str], dict[str, Any]]) -> None:
    store = run("langchain_core")["store"]
    with store.encoder:
        [document] = store.embed_documents(["the lake"])
        assert len(document) == len(store.embed_query("a lake")) == 64
        assert isinstance(document[0], float)


def test_the_readme_leads_there() -> None:
    assert "docs/embedding-apis.md" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(BLOCKS) == 3
