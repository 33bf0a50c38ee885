"""BEIR-shaped folders, whole and damaged."""

import gzip
import json
from pathlib import Path

import pytest

from t1_edge.errors import DataError
from t1_edge_bench.datasets import load

CORPUS = [
    {"_id": "d1", "title": "Ships", "text": "A body in water is pushed up."},
    {"_id": "d2", "text": "Locks let one process write."},
    {"_id": "d3", "title": "", "text": "Iron rusts by the sea."},
]
QUERIES = [
    {"_id": "q1", "text": "why do ships float", "answer": "never mind"},
    {"_id": "q2", "text": "what rusts"},
    {"_id": "q3", "text": "nobody judged this"},
]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td3\t2\nq2\td2\t0\n"


_TWO_TEXTS = '{"_id": "q1", "text": "a"}\n{"_id": "q1", "text": "b"}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _lines(tmp_path / "corpus.jsonl", CORPUS)
    _lines(tmp_path / "queries.jsonl", QUERIES)
    (tmp_path / "qrels.tsv").write_text(QRELS)
    return tmp_path


def _lines(path: Path, records: list[dict[str, str]]) -> None:
    text = "".join(json.dumps(record) + "\n" for record in records)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def test_a_folder_is_read(folder: Path) -> None:
    found = load(folder)
    assert [document.text for document in found.documents][:2] == [
        "Ships\nA body in water is pushed up.",
        "Locks let one process write.",
    ]
    assert [query.id for query in found.queries] == ["q1", "q2"]
    assert found.qrels == {"q1": {"d1": 1}, "q2": {"d3": 2}}
    assert found.unjudged == 1
    assert found.excluded == {}


def test_compressed_files_and_splits_are_read(folder: Path) -> None:
    (folder / "corpus.jsonl").unlink()
    _lines(folder / "corpus.jsonl.gz", CORPUS)
    _lines(folder / "queries.dev.jsonl.gz", QUERIES[1:])
    (folder / "qrels.dev.tsv").write_text(QRELS)
    found = load(folder, split="dev")
    assert (found.split, [query.id for query in found.queries]) == ("dev", ["q2"])
    with pytest.raises(DataError, match=r"\(none\), dev; name one with --split"):
        load(folder)
    with pytest.raises(DataError, match="no 'test'"):
        load(folder, split="test")


def test_a_folder_without_splits_says_so(folder: Path) -> None:
    with pytest.raises(DataError, match="leave --split out"):
        load(folder, split="test")


def test_beirs_own_layout_is_read(folder: Path) -> None:
    before = load(folder)
    (folder / "qrels").mkdir()
    (folder / "qrels.tsv").rename(folder / "qrels" / "test.tsv")
    found = load(folder)
    assert (found.split, found.queries, found.qrels) == ("test", before.queries, before.qrels)
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq3\td1\t1\n")
    assert [query.id for query in load(folder, split="dev").queries] == ["q3"]


def test_the_first_judged_queries_are_kept(folder: Path) -> None:
    found = load(folder, limit_queries=1)
    assert [query.id for query in found.queries] == ["q1"]
    assert set(found.qrels) == {"q1"}


def test_a_record_that_is_repeated_counts_once(folder: Path) -> None:
    before = load(folder)
    _lines(folder / "queries.jsonl", [*QUERIES, QUERIES[0]])
    _lines(folder / "corpus.jsonl", [*CORPUS, CORPUS[1]])
    assert load(folder) == before


def test_exclusions_are_read(folder: Path) -> None:
    (folder / "excluded.tsv").write_text("query-id\tcorpus-id\nq1\td2\nq1\td3\n")
    assert load(folder).excluded == {"q1": frozenset({"d2", "d3"})}


def test_the_digest_follows_the_texts(folder: Path) -> None:
    before = load(folder).digest()
    assert load(folder, limit_queries=1).digest() == before
    _lines(folder / "corpus.jsonl", [*CORPUS[:2], {"_id": "d3", "text": "Iron rusts."}])
    assert load(folder).digest() != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corpus.jsonl", '{"_id": "d1"}\n', r"corpus\.jsonl:1: expected .*text"),
        ("corpus.jsonl", "no json\n", r"corpus\.jsonl:1"),
        ("queries.jsonl", '{"_id": "q1", "text": "x"}\n[]\n', r"queries\.jsonl:2"),
        ("qrels.tsv", "query-id\tcorpus-id\tscore\nq1\td1\n", r"qrels\.tsv:2: expected 3 columns"),
        ("qrels.tsv", "q1\td1\t1\n", r"qrels\.tsv:1: expected the header query-id corpus-id score"),
        ("queries.jsonl", _TWO_TEXTS, r"queries\.jsonl:2: the id 'q1' had another text"),
        ("corpus.jsonl", _TWO_TEXTS, r"corpus\.jsonl:2: the id 'q1' had another text"),
        ("qrels.tsv", "query-id\tcorpus-id\tscore\nq1\td9\t1\n", "no document 'd9'"),
        ("qrels.tsv", "query-id\tcorpus-id\tscore\nq1\td1\tyes\n", "'yes' is no whole number"),
        ("qrels.tsv", "query-id\tcorpus-id\tscore\nq9\td1\t1\n", "none of the 3 queries"),
    ],
)
def test_damage_is_named_with_its_line(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load(folder)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels.tsv"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(DataError, match=name.partition(".")[0]):
        load(folder)


def test_a_cut_off_archive_is_named(folder: Path) -> None:
    (folder / "corpus.jsonl").unlink()
    _lines(folder / "corpus.jsonl.gz", CORPUS)
    whole = (folder / "corpus.jsonl.gz").read_bytes()
    (folder / "corpus.jsonl.gz").write_bytes(whole[:-12])
    with pytest.raises(DataError, match=r"corpus\.jsonl\.gz"):
        load(folder)
