"""Dev questions of the stream as a data set."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from recipes.nano.data import POSITIVES, Example, write_lines
from recipes.nano.devset import draw, main
from t1_edge_bench.datasets import Dataset, load


def test_the_dev_set_is_one_that_the_bench_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.nano.devset.DISTRACTORS", 5)
    dev = [
        Example(set=name, part="dev", query=f"query {query}?", positives=(at, at + 1))
        for name, query, at in (("a", 0, 0), ("a", 1, 4), ("b", 1, 12))
    ]
    trained = Example(set="a", part="train", query="query 2?", positives=(8,))
    write_lines(tmp_path / "documents.jsonl", ({"text": f"line {at}"} for at in range(20)))
    write_lines(tmp_path / "examples.jsonl", [*dev[:2], trained, *dev[2:]])
    kept = [True, True, True, False, True, False, True]  # of positives, as teacher.py chose
    np.save(tmp_path / POSITIVES, np.array(kept))

    def write() -> Dataset:
        found = CliRunner().invoke(main, ["--data", str(tmp_path)])
        assert (found.exit_code, found.output) == (0, "2 questions, 9 documents\n")
        return load(tmp_path / "dev")

    data = write()
    assert [query.text for query in data.queries] == ["query 0?", "query 1?"]
    texts = {document.id: document.text for document in data.documents}
    answers = [{texts[id] for id in data.qrels[query.id]} for query in data.queries]
    assert answers == [{"line 0", "line 1"}, {"line 4", "line 13"}]
    assert write() == data


def test_a_stream_without_dev_questions_is_named() -> None:
    trained = Example(set="a", part="train", query="query?", positives=(0,))
    with pytest.raises(ValueError, match="has no dev questions"):
        draw([trained], [np.array([0])], 1)
