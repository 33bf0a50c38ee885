"""Whether the engines find the same, on a folder that is made here."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from recipes.nano import engines
from recipes.nano.evaluate import Measured
from t1_edge.build import Build
from t1_edge_bench.datasets import Dataset

TEXTS = ["ships float on water", "iron rusts in rain", "locks guard a file", "leaves turn red"]


def test_each_engine_is_measured_and_compared(
    tiny_build: Callable[..., Build], own_cache: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    rows = [json.dumps({"_id": f"d{n}", "text": text}) for n, text in enumerate(TEXTS)]
    (folder / "corpus.jsonl").write_text("\n".join(rows))
    (folder / "queries.jsonl").write_text("\n".join(row.replace('"d', '"q') for row in rows))
    judged = "".join(f"q{n}\td{n}\t1\n" for n in range(len(TEXTS)))
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    build = str(tiny_build("llama", "portable").path)
    given = ["--build", build, "--bench", str(tmp_path), "--set", "made", "--budget", "3"]
    found = CliRunner().invoke(engines.main, given, catch_exceptions=False)
    apart, *_, row = found.stdout.splitlines()
    difference = json.loads(apart)
    assert (difference["better"], difference["than"]) == ("gguf at 3", "onnx at 3")
    name, budget, onnx, gguf, less, *_ = row.split()
    assert (name, budget) == ("made", "3")
    assert float(less) == pytest.approx(float(gguf) - float(onnx), abs=1e-3)


def test_the_difference_is_of_the_engines_own_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measured(build: str, engine: str, dataset: Dataset, budgets: list[int]) -> list[Measured]:
        ndcg = {"onnx": [0.25, 0.5], "gguf": [0.25, 1.0]}[engine]
        return [Measured(dataset="pydoc", system=f"{engine} at {n}", ndcg=ndcg) for n in budgets]

    monkeypatch.setattr(engines, "measure", measured)
    given = ["--bench", str(tmp_path), "--set", "pydoc", "--budget", "0,4"]
    *_, row = CliRunner().invoke(engines.main, given, catch_exceptions=False).stdout.splitlines()
    assert row.split() == ["pydoc", "4", "0.375", "0.625", "+0.250", "[+0.000,", "+0.500]"]
