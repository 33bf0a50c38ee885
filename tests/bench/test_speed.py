"""The benchmark of speed, but for its peers and its times: what is asked, answered and reported."""

from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pytest

from peers.speed_process import Worker
from peers.speed_report import (
    BARS,
    GRAPH,
    ORDINARY,
    OWN,
    Near,
    Sample,
    comparison,
    figures,
    ratios,
)
from peers.speed_texts import facts, passages, queries, read, tasks
from peers.speed_wire import Answer, Command, Tasks, Texts, groups
from peers.speed_worker import batches, best, sample
from t1_edge.contract import Codec, Contract
from t1_edge.tokenization import TextTokenizer
from tiny import tokenizer_json

FAKE = """
import sys
from pathlib import Path
import numpy as np
from peers.speed_wire import Tasks
from peers.speed_worker import rows_of, serve

class Lengths:
    def prepare(self, work, items):
        print("a library talks")
        return f"{len(items)} rows"

    def run(self, work, items):
        if work == "facts":
            raise ValueError("no facts")
        return np.array([[len(item)] for item in items], np.float32)

serve(Lengths(), rows_of(Tasks.load(Path(sys.argv[1]))))
"""


def some_tasks() -> Tasks:
    texts = Texts(texts=["a", "b", "c"], rows=[[1], [1, 2], [1, 2, 3]])
    return Tasks(budget=2, ending=[7, 8], passages=texts, facts=texts, queries=texts)


def test_what_is_said_is_understood(tmp_path: Path) -> None:
    some_tasks().save(tmp_path / "tasks.json")
    assert Tasks.load(tmp_path / "tasks.json") == some_tasks()
    command = Command(action="run", work="query", share=1, shares=3, vectors="somewhere.npy")
    assert Command.parse(command.line()) == command
    answer = Answer(seconds=[0.5, 0.25], settings="said")
    assert Answer.parse(answer.line()) == answer


def test_shares_are_all_of_a_work() -> None:
    items = list(range(20))
    shares = [groups("passages", items, share, 3) for share in range(3)]
    assert all(len(parts) == 1 for parts in shares)
    assert sorted(item for parts in shares for part in parts for item in part) == items
    assert groups("query", items, 0, 10) == [[0], [10]]


def test_queries_come_in_whole_eights() -> None:
    assert groups("queries", list(range(20)), 0, 1) == [list(range(8)), list(range(8, 16))]
    assert groups("queries", [1, 2, 3], 0, 1) == [[1, 2, 3, 1, 2, 3, 1, 2]]


def test_a_worker_answers_and_its_talk_goes_to_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fake_contestant.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    file, log, vectors = (tmp_path / name for name in ("tasks.json", "log", "vectors.npy"))
    some_tasks().save(file)
    with Worker("fake_contestant", [str(file)], peer=None, work=tmp_path, log=log) as worker:
        prepared = worker.ask(Command(action="prepare", work="query"))
        assert prepared.settings == "3 rows"
        found = worker.ask(Command(action="run", work="query", vectors=str(vectors)))
        assert len(found.seconds) == 3
        assert np.load(vectors).tolist() == [[1], [2], [3]]
        with pytest.raises(click.ClickException, match="fake_contestant ended"):
            worker.ask(Command(action="run", work="facts"))
    said = log.read_text()
    assert "a library talks" in said
    assert "no facts" in said


def test_rows_of_like_length_run_together() -> None:
    rows = [[0] * length for length in (5, 1, 4, 2, 9)]
    assert list(batches(rows, 8, most=9, padded=False)) == [[1, 3, 2], [0], [4]]
    assert list(batches(rows, 8, most=9, padded=True)) == [[1, 3], [2], [0], [4]]
    assert list(batches(rows, 99, most=2, padded=True)) == [[1, 3], [2, 0], [4]]
    assert [len(row) for row in sample(rows, 10)] == [5, 1, 4]
    assert sample(rows, 1) == rows[:1]


def test_the_fastest_settings_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Settings:
        batch: int = 1
        threads: int = 2

    now = 0.0

    def run(settings: Settings) -> None:
        nonlocal now
        now += abs(settings.batch - 4) + settings.threads

    monkeypatch.setattr("time.perf_counter", lambda: now)
    axes = {"batch": (1, 2, 4, 8), "threads": (2, 1)}
    assert best(Settings(), axes, run) == Settings(batch=4, threads=1)


def test_texts_are_the_same_every_time() -> None:
    some = passages(256)
    assert some == passages(256)
    assert len(set(some)) == 256
    words = [len(text.split()) for text in some]
    assert (min(words), max(words)) == (90, 210)
    assert sum(words) / len(words) == pytest.approx(150, abs=1)
    sentences = facts(5000)
    assert sentences == facts(5000)
    assert len(set(sentences)) == 5000
    with pytest.raises(click.ClickException, match="questions, not 1000"):
        queries(1000)


def test_texts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"id": 1, "text": "one"}\n{"text": "two"}\n')
    assert read(path, 1) == ["one"]
    assert read(path, 2) == ["one", "two"]
    with pytest.raises(click.ClickException, match="has 2 texts, not 3"):
        read(path, 3)
    path.write_text('{"body": "one"}\n')
    with pytest.raises(click.ClickException, match="must hold lines like"):
        read(path, 1)


def test_rows_are_the_contracts() -> None:
    contract = Contract(
        query="<|im_start|>Find: {text}",
        document="Text: {text}",
        emb_token="<|im_end|>",
        think_open="<|im_start|>",
        think_close="<|endoftext|>",
    )
    codec = Codec(contract, TextTokenizer(tokenizer_json()))
    found = tasks(codec, 4, passages=["a long text"], facts=["a fact"], queries=["why"])
    assert found.facts.rows == [[*codec.document("a fact").tokens, codec.emb_id]]
    assert found.of("queries").rows == [codec.query("why").tokens]
    assert tuple(found.ending) == codec.ending


def some_samples() -> list[Sample]:
    onnx, gguf = OWN.values()
    documents = [(onnx, 1.0, 2.0), (gguf, 2.0, 2.0), (ORDINARY, 4.0, 2.0), (GRAPH, 2.0, 2.0)]
    found = [
        Sample(contestant=name, work="passages", round=at, seconds=[seconds], tokens=100)
        for name, *times in documents
        for at, seconds in enumerate(times)
    ]
    found += [
        Sample(contestant=onnx, work="query", round=0, seconds=[0.1, 0.2, 0.9]),
        Sample(contestant=ORDINARY, work="query", round=0, seconds=[0.3, 0.5, 0.4]),
        Sample(contestant=onnx, work="start", round=0, seconds=[0.75]),
    ]
    return found


def test_ratios_are_taken_round_by_round() -> None:
    own = OWN["onnx"]
    assert ratios(some_samples(), "passages", ORDINARY, own) == [4.0, 1.0]
    assert ratios(some_samples(), "query", ORDINARY, own) == [pytest.approx(2.0)]
    assert ratios(some_samples(), "facts", ORDINARY, own) == []


def test_ratios_stand_beside_bars_and_goals() -> None:
    near = [
        Near(contestant=OWN["onnx"], work="passages", mean=0.98, least=0.9),
        Near(contestant=ORDINARY, work="passages", mean=0.97, least=0.9),
        Near(contestant=GRAPH, work="passages", mean=0.5, least=0.1),
    ]
    lines = comparison(some_samples(), near).splitlines()
    assert len(lines) == 2 + len(BARS) + 1
    rows = {line.partition("  ")[0]: line for line in lines}
    cells = rows[f"passages: times {ORDINARY}"].split()[-10:]
    assert cells == "2.50 (1.00 to 4.00) 1.50 (1.00 to 2.00) 1.70 2.20".split()
    assert "wrong vectors" in rows[f"passages: times {GRAPH}"]
    assert rows["fresh process to vector, s"].split()[-3:] == ["0.75", "1.00", "0.50"]


def test_figures_are_rates_or_times() -> None:
    near = [Near(contestant=OWN["onnx"], work="passages", mean=0.98, least=0.9)]
    rows = {
        line.partition("  ")[0]: line.split() for line in figures(some_samples(), near).splitlines()
    }
    own = rows["passages: t1-edge, onnx"]
    assert own[-6:] == ["75", "50", "100", "tokens/s", "0.9800", "0.9000"]
    assert rows["a query, p50: llama-cpp-python"][-4:] == ["400", "300", "500", "ms"]
