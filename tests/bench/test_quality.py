"""Rankings against brute force, measures against hand-made figures, and the whole of it."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from scripted import scripted_encoder
from t1_edge.build import Build
from t1_edge.cli import main
from t1_edge.contract import Codec
from t1_edge.encoder import Encoder
from t1_edge.engines.fake import FakeEngine
from t1_edge.errors import EngineError
from t1_edge.thinking import Settle
from t1_edge.tokenization import TextTokenizer
from t1_edge_bench import latency, pydoc
from t1_edge_bench.datasets import Dataset, Text
from t1_edge_bench.metrics import mean, score
from t1_edge_bench.quality import quality
from t1_edge_bench.ranking import bm25, by_topic, dense, fuse
from t1_edge_bench.search import DENSE, EXPANDED, HYBRID, THINKING_HYBRID, Searcher
from t1_edge_bench.table import table
from t1_edge_bench.vectors import document_vectors


def _dataset(excluded: dict[str, frozenset[str]] | None = None) -> Dataset:
    topics = ["ships float on water", "iron rusts in salt water", "locks guard a file", "soup"]
    documents = [Text(id=f"d{n}", text=f"{topics[n % 4]} number{n}") for n in range(40)]
    queries = [Text(id="q0", text="a floating ship"), Text(id="q1", text="rusted iron")]
    return Dataset(
        name="made",
        split="",
        documents=documents,
        queries=queries,
        qrels={"q0": {"d0": 1, "d4": 1}, "q1": {"d1": 1}},
        excluded=excluded or {},
        unjudged=0,
    )


def _unit(rows: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    found = np.random.default_rng(rows).standard_normal((rows, 16)).astype(np.float32)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def test_dense_search_is_exact() -> None:
    documents, queries = _unit(40), _unit(2)
    found = dense(_dataset(), documents, queries, depth=10)
    for at, query in enumerate(("q0", "q1")):
        order = np.argsort(-(documents @ queries[at]))[:10]
        assert list(found[query]) == [f"d{n}" for n in order]
        scores = np.array(list(found[query].values()))
        np.testing.assert_allclose(scores, (documents @ queries[at])[order], atol=1e-5)


def test_exclusions_take_no_place() -> None:
    documents, queries = _unit(40), _unit(2)
    free = list(dense(_dataset(), documents, queries, depth=10)["q0"])
    out = frozenset(free[:3])
    found = list(dense(_dataset({"q0": out}), documents, queries, depth=10)["q0"])
    assert found[:7] == free[3:]
    assert len(found) == 10


def test_bm25_stems_and_drops_stop_words() -> None:
    found = bm25(_dataset())
    assert set(found["q0"]) == {f"d{n}" for n in range(0, 40, 4)}
    assert set(found["q1"]) == {f"d{n}" for n in range(1, 40, 4)}
    assert "d0" not in bm25(_dataset({"q0": frozenset({"d0"})}))["q0"]


def test_bm25_finds_nothing_for_stop_words() -> None:
    data = _dataset()
    nothing = Dataset(**{**vars(data), "queries": [Text(id="q0", text="the of and")]})
    assert bm25(nothing) == {"q0": {}}


def test_measures_are_the_textbooks() -> None:
    run = {"q0": {"d9": 3.0, "d4": 2.0, "d0": 1.0}, "q1": {}}
    found = score(run, _dataset())
    ideal = 1 + 1 / math.log2(3)
    expected = (1 / math.log2(3) + 1 / math.log2(4)) / ideal
    assert found.ndcg_at_10 == {"q0": pytest.approx(expected), "q1": 0.0}
    assert found.recall_at_100 == {"q0": 1.0, "q1": 0.0}
    assert mean(found.recall_at_100) == 0.5


def test_a_topic_is_as_good_as_its_best_document() -> None:
    data = replace(
        _dataset(),
        topics={f"d{n}": f"t{n // 10}" for n in range(40)},
        qrels={"q0": {"t0": 1}, "q1": {"t3": 1}},
    )
    run = {"q0": {"d9": 0.1, "d12": 0.5, "d15": 0.2, "d1": 0.9}, "q1": {"d0": 0.3}}
    assert by_topic(run, data) == {"q0": {"t0": 0.9, "t1": 0.5}, "q1": {"t0": 0.3}}
    assert score(run, data).ndcg_at_10 == {"q0": 1.0, "q1": 0.0}
    assert score(run, data).recall_at_100 == {"q0": 1.0, "q1": 0.0}
    assert by_topic(run, _dataset()) is run


class _Counting(FakeEngine):
    rows = 0
    last = 0
    most = 0

    def start(self, rows, *, room):  # type: ignore[no-untyped-def]
        self.rows += len(rows)
        self.last = len(rows)
        self.most = max(self.most, len(rows))
        return super().start(rows, room=room)


@pytest.fixture
def encoder(tiny_build: Callable[..., Build], own_cache: Path) -> tuple[Encoder, _Counting]:
    build = tiny_build("llama", "float")
    codec = Codec(build.manifest.contract, TextTokenizer.from_file(build.file("tokenizer.json")))
    engine = _Counting(vocabulary=384)
    return Encoder(codec, engine, fingerprint="f", hidden=32), engine


def _vectors(encoder: Encoder, dataset: Dataset, said: list[str]) -> object:
    return document_vectors(encoder, dataset, say=said.append, progress=lambda n: None)


def test_documents_are_encoded_once(encoder: tuple[Encoder, _Counting], own_cache: Path) -> None:
    said: list[str] = []
    first = _vectors(encoder[0], _dataset(), said)
    assert encoder[1].rows == 40
    second = _vectors(encoder[0], _dataset(), said)
    assert encoder[1].rows == 40
    np.testing.assert_array_equal(first, second)
    assert "in the cache" in said[-1]


def test_as_many_run_together_as_are_asked_for(encoder: tuple[Encoder, _Counting]) -> None:
    quality(encoder[0], _dataset(), [0], build="fake", batch_size=1)
    assert encoder[1].most == 1
    assert encoder[1].rows == 42
    quality(encoder[0], _dataset(), [0], build="fake")  # the documents are known
    assert encoder[1].most == 2


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY cut", b"x" * 400])
def test_damaged_vectors_are_computed_again(
    encoder: tuple[Encoder, _Counting], own_cache: Path, damage: bytes
) -> None:
    said: list[str] = []
    first = _vectors(encoder[0], _dataset(), said)
    path = next((own_cache / "vectors").glob("*.npy"))
    path.write_bytes(damage)
    np.testing.assert_array_equal(first, _vectors(encoder[0], _dataset(), said))
    assert any("damaged" in line for line in said)


def test_other_weights_have_other_vectors(encoder: tuple[Encoder, _Counting]) -> None:
    _vectors(encoder[0], _dataset(), [])
    other = Encoder(encoder[0].codec, encoder[1], fingerprint="g", hidden=32)
    _vectors(other, _dataset(), [])
    assert encoder[1].rows == 80


def test_a_row_for_bm25_and_each_system_at_a_budget(encoder: tuple[Encoder, _Counting]) -> None:
    rows = quality(encoder[0], _dataset(), [0, 3], build="fake")
    assert [(row.system, row.budget) for row in rows] == [
        ("bm25", None),
        *((system, 0) for system in (DENSE, HYBRID)),
        *((system, 3) for system in (DENSE, EXPANDED, THINKING_HYBRID)),
    ]
    assert all(0 <= row.ndcg <= 1 and row.queries == 2 for row in rows)
    assert rows[0].ndcg > 0.3
    assert rows[1].thought_tokens == 0
    assert rows[3].library == "fake"


def test_settling_is_measured_beside_not_settling(own_cache: Path) -> None:
    thinker, engine = scripted_encoder()
    engine.favourite = 40
    settles = [Settle(cosine=1e-6, every=1), Settle(cosine=1.0, every=2)]
    found = quality(thinker, _dataset(), [0, 4], build="fake", settles=settles)
    dense = [row for row in found if row.system == DENSE]
    assert [(row.budget, row.settle) for row in dense] == [(0, None), (4, None), (4, 1e-6), (4, 1)]
    tokens = [row.thought_tokens for row in dense]
    assert tokens[2] == 1  # any two vectors are that near
    assert tokens[1] == tokens[3] == 4


def test_queries_that_come_alone_find_the_same(encoder: tuple[Encoder, _Counting]) -> None:
    found = []
    for how in (False, True):
        searcher = Searcher(encoder=encoder[0], dataset=_dataset(), one_by_one=how)
        found.append(searcher.think(3))
        assert encoder[1].last == (1 if how else 2)
    batched, alone = found
    for one, other in zip(batched, alone, strict=True):
        assert one.thought == other.thought
        np.testing.assert_allclose(one.vector, other.vector, atol=1e-6)


def test_bm25_reads_a_query_and_its_thought(encoder: tuple[Encoder, _Counting]) -> None:
    data = _dataset()
    searcher = Searcher(encoder=encoder[0], dataset=data)
    texts = [query.text for query in data.queries]
    found = encoder[0].encode_queries(texts, thoughts=["soup", "soup"])
    runs = searcher.runs(found, searcher.direct)
    assert "d3" not in searcher.lexical["q0"]
    assert {"d0", "d3"} <= set(runs[EXPANDED]["q0"])
    hybrid = fuse([searcher.direct, runs[EXPANDED]])
    assert runs[THINKING_HYBRID] == hybrid != fuse([runs[DENSE], runs[EXPANDED]])


def test_the_command_measures_a_real_build(
    tiny_build: Callable[..., Build], tmp_path: Path, own_cache: Path
) -> None:
    data = _dataset()
    records = {"corpus": data.documents, "queries": data.queries}
    for name, texts in records.items():
        lines = "".join(json.dumps({"_id": t.id, "text": t.text}) + "\n" for t in texts)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    judged = "".join(f"{q}\t{d}\t{n}\n" for q, hits in data.qrels.items() for d, n in hits.items())
    (tmp_path / "qrels.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    build = str(tiny_build("llama", "portable").path)
    arguments = ["bench", "quality", "--build", build, "--data", str(tmp_path), "--budget", "0,2"]
    found = CliRunner().invoke(main, [*arguments, "--json"])
    assert found.exit_code == 0, found.stderr
    rows = json.loads(found.stdout)["rows"]
    assert [row["system"] for row in rows][:4] == ["bm25", DENSE, HYBRID, DENSE]
    assert {"budget", "ndcg@10", "recall@100", "queries"} <= rows[0].keys()
    assert rows[1]["device"] == "cpu"
    settling = ["--settle", "0.2,0.9999", "--settle-every", "1", "--one-by-one"]
    plain = CliRunner().invoke(main, [*arguments, *settling, "--batch-size", "4"])
    assert plain.stdout.splitlines()[0].split()[:4] == ["system", "budget", "settle", "nDCG@10"]
    settled = [
        line.split()[2] for line in plain.stdout.splitlines() if line.startswith("t1-edge  ")
    ]
    assert settled[2:] == ["0.2", "0.9999"]
    assert "40 document vectors are in the cache" in plain.stderr


def test_without_a_folder_it_asks_about_python(
    tiny_build: Callable[..., Build], own_cache: Path
) -> None:
    build = str(tiny_build("llama", "portable").path)
    arguments = ["bench", "quality", "--build", build, "--budget", "0", "--limit-queries", "5"]
    found = CliRunner().invoke(main, [*arguments, "--json"])
    assert found.exit_code == 0, found.stderr
    rows = json.loads(found.stdout)["rows"]
    data = pydoc.dataset(limit_queries=5)
    assert {(row["dataset"], row["queries"]) for row in rows} == {(f"pydoc/{data.split}", 5)}
    assert {row["recall@100"] for row in rows} == {None}
    expected = mean(score(bm25(data), data).ndcg_at_10)
    assert rows[0]["ndcg@10"] == pytest.approx(expected, abs=1e-4)
    assert expected > 0


def test_latency_of_a_real_build(tiny_build: Callable[..., Build]) -> None:
    build = str(tiny_build("llama", "portable").path)
    arguments = ["bench", "latency", "--build", build, "--budget", "0"]
    arguments += ["--documents", "3", "--queries", "5"]
    found = CliRunner().invoke(main, [*arguments, "--engine", "gguf", "--json"])
    assert found.exit_code == 0, found.stderr
    [row] = json.loads(found.stdout)["rows"]
    assert row["library"].startswith("llama.cpp")
    assert row["peak_resident"] > row["weight_bytes"] > 0
    assert row["documents"] == 3
    assert len(row["query_samples"]["0"]) == 5
    assert "reading 3 documents, 3 times" in found.stderr
    assert row["query_p50"]["0"] <= row["query_p95"]["0"]
    assert row["bandwidth_share"] > 0
    plain = CliRunner().invoke(main, [*arguments, "--engine", "onnx"])
    assert "thinking, tokens/s" in plain.stdout


def test_a_process_that_fails_says_why() -> None:
    said: list[str] = []
    script = (
        f"import sys; print('noise'); print('{latency._TALK}loading', file=sys.stderr); "
        "print('out of paper', file=sys.stderr); sys.exit(3)"
    )
    with pytest.raises(EngineError, match=r"^printing ended with code 3: out of paper$"):
        latency._watch([sys.executable, "-c", script], "printing", said.append)
    assert said == ["loading"]


def test_tables_are_aligned() -> None:
    assert table(["a", "long"], [["xy", "1"], ["z", "22"]]).splitlines() == [
        "a   long",
        "--  ----",
        "xy     1",
        "z     22",
    ]


def test_fusion_prefers_what_both_found() -> None:
    first = {"q": {"a": 9.0, "b": 8.0, "c": 7.0}}
    second = {"q": {"b": 0.3, "d": 0.2, "a": 0.1}}
    fused = fuse([first, second])["q"]
    assert list(fused) == ["b", "a", "d", "c"]
    assert fused["b"] == pytest.approx(1 / 62 + 1 / 61)
    assert list(fuse([first, second], depth=1)["q"]) == ["b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--settle", "2"], "2.0 is not in the range"),
        (["--settle", "a"], "not a valid float"),
        (["--settle", "0.9", "--budget", "0"], "give a --budget above 0"),
        (["--settle-every", "2"], "--settle-every is for --settle"),
        (["--budget", "4,-1"], "-1 is not in the range"),
        (["--split", ""], "--split is for a folder"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    own_cache: Path, options: list[str], message: str
) -> None:
    found = CliRunner().invoke(main, ["bench", "quality", *options])
    assert found.exit_code == 2
    assert message in found.stderr
