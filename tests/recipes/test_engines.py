"""Whether the engines find the same, on a folder that is made here."""

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from recipes.nano.engines import main
from t1_edge.build import Build

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
    found = CliRunner().invoke(main, given, catch_exceptions=False)
    apart, *_, row = found.stdout.splitlines()
    difference = json.loads(apart)
    assert (difference["better"], difference["than"]) == ("gguf at 3", "onnx at 3")
    assert difference["low"] <= difference["mean"] <= difference["high"]
    assert row.split()[:2] == ["made", "3"]
