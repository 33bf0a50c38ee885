"""The recipe of nano over a tiny decoder: what it trains is what export reads."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from recipes.nano.average import average
from recipes.nano.config import Config, read_config
from recipes.nano.data import Pair, split
from recipes.nano.evaluate import Measured, measure
from recipes.nano.keywords import main as write_keywords
from recipes.nano.learner import Learner
from recipes.nano.model import Frozen, Student, load_student, new_student
from recipes.nano.report import claims, compare
from recipes.nano.stages import joint as joint_loss
from recipes.nano.stages import loss_of
from recipes.nano.statistics import training_rows
from recipes.nano.stream import Stream, cut
from recipes.nano.thoughts import Reader
from scripted import scripted_encoder
from t1_edge.contract import Codec
from t1_edge_bench.datasets import Dataset, Text
from t1_edge_bench.search import Searcher
from t1_edge_export.adapter import with_adapter
from t1_edge_export.checkpoint import open_checkpoint
from t1_edge_export.reference import Reference
from t1_edge_export.vocabulary import with_tokens
from tiny import Tiny

Made = tuple[Student, Codec]

_CONFIGS = sorted((Path(__file__).parents[2] / "recipes/nano/configs").glob("*.toml"))


@pytest.fixture
def student(tiny: Callable[..., Tiny]) -> Made:
    torch.manual_seed(0)
    made, codec = new_student(str(tiny("llama").folder), rank=4, alpha=8, first_layer=1)
    with torch.no_grad():
        for parameter in made.trained().values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made, codec


def _rows(codec: Codec) -> list[tuple[int, ...]]:
    texts = ["why", "a question that is longer than the others", "two words"]
    return [(*codec.query(text).tokens, codec.close_id, codec.emb_id) for text in texts]


def test_what_was_trained_is_what_export_reads(
    student: Made, tiny: Callable[..., Tiny], tmp_path: Path
) -> None:
    made, codec = student
    made.save(tmp_path, str(tiny("llama").folder))
    base = with_tokens(open_checkpoint(tiny("llama").folder), codec.contract)
    merged = Reference(with_adapter(base, tmp_path)).hidden_states(_rows(codec))
    merged /= np.linalg.norm(merged, axis=1, keepdims=True)
    with torch.no_grad():
        # In float32, for processors round bfloat16 sums in ways of their own.
        found = made.float().vectors(_rows(codec), most=40).numpy()
        again = load_student(tmp_path)[0].float().vectors(_rows(codec)).numpy()
    assert ((found * merged).sum(axis=1) > 0.9995).all()  # the base was bfloat16
    np.testing.assert_allclose(found, again, atol=2e-3)  # float16 in the file
    plain = Reference(base).hidden_states(_rows(codec))
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    assert (found * plain).sum(axis=1).max() < 0.99


@pytest.mark.parametrize("distinct", [False, True])
def test_greedy_thoughts_do_not_depend_on_their_batch(student: Made, distinct: bool) -> None:
    made, codec = student
    rows = [row[:-2] for row in _rows(codec)]
    generator = torch.Generator()

    def think(chosen: list[tuple[int, ...]]) -> list[list[int]]:
        return made.think(
            chosen,
            budget=6,
            ends=[codec.close_id],
            distinct=distinct,
            temperature=0,
            generator=generator,
        )

    together = think(rows)
    assert [think([row])[0] for row in rows] == together
    with torch.no_grad():
        row = (*rows[1], *together[1])
        states = made.states([row], [range(len(rows[1]) - 1, len(row) - 1)])
        scores = made.logits(states)
    if distinct:
        for at in range(len(together[1])):
            scores[at, together[1][:at]] = -torch.inf
        assert all(len(set(thought)) == len(thought) for thought in together)
    expected = scores.argmax(-1).tolist()
    assert together[1] == expected


def test_a_thought_has_its_least_tokens(student: Made) -> None:
    made, codec = student
    rows = [row[:-2] for row in _rows(codec)]
    with torch.no_grad():
        made.rows[codec.close_id - made.first_new] *= 1000  # closes at once, or is never drawn
    settings = {"budget": 6, "ends": [codec.close_id], "distinct": False, "temperature": 0}
    free, held = (
        made.think(rows, generator=torch.Generator(), least=least, **settings)  # type: ignore[arg-type]
        for least in (0, 3)
    )
    assert min(map(len, free)) == 1
    assert all(codec.close_id not in thought[:3] for thought in held)


def test_the_mean_of_adapters_lies_between_them(student: Made, tmp_path: Path) -> None:
    made, _ = student
    folders = [tmp_path / name for name in ("first", "second", "mean")]
    before = {name: p.detach().clone() for name, p in made.trained().items()}
    made.save(folders[0], "base")
    with torch.no_grad():
        for parameter in made.trained().values():
            parameter.add_(1)
    made.save(folders[1], "base")
    average(folders[0], folders[1], 0.25, folders[2])
    made.load(folders[2])
    for name, parameter in made.trained().items():
        torch.testing.assert_close(parameter.detach(), before[name] + 0.25, atol=2e-3, rtol=0)
    made.save(folders[1], "another base")
    with pytest.raises(ValueError, match="different kinds"):
        average(folders[0], folders[1], 0.25, folders[2])


def test_only_the_adapter_and_the_new_rows_learn(student: Made) -> None:
    made, codec = student
    names = made.trained()
    assert {name.split(".")[-1] for name in names} == {"rows", "lora_A", "lora_B"}
    made.vectors(_rows(codec)).sum().backward()  # type: ignore[no-untyped-call]
    assert not any("layers.0." in name for name in names)
    assert all(p.grad is not None for name, p in names.items() if name != "rows")


def test_a_frozen_student_comes_back_and_goes(student: Made) -> None:
    made, codec = student
    with torch.no_grad():
        before = made.vectors(_rows(codec))
        frozen = Frozen(made)
        for parameter in made.trained().values():
            parameter.mul_(1.5)
        after = made.vectors(_rows(codec))
        with frozen.restored():
            assert torch.equal(made.vectors(_rows(codec)), before)
        assert torch.equal(made.vectors(_rows(codec)), after)


@pytest.fixture
def stream(student: Made, tmp_path: Path) -> Stream:
    """Forty questions of two sets, each with one document, and a teacher that draws lots."""
    pairs = [
        Pair(set=name, query=f"{name} question {at}", documents=[f"{name} answer number {at}"])
        for name in ("a", "b")
        for at in range(40)
    ]
    documents, examples = split(pairs)
    encode = msgspec.json.encode
    (tmp_path / "documents.jsonl").write_bytes(
        b"".join(encode({"text": text}) + b"\n" for text in documents)
    )
    (tmp_path / "examples.jsonl").write_bytes(b"".join(encode(e) + b"\n" for e in examples))
    thoughts = [f"word {at}" if at % 3 else "" for at in range(len(examples))]
    (tmp_path / "thoughts.jsonl").write_bytes(b"".join(encode(t) + b"\n" for t in thoughts))
    (tmp_path / "keywords.jsonl").write_bytes(b'{"answer":2,"number":1}\n' * len(examples))
    rng = np.random.default_rng(0)
    np.save(tmp_path / "queries.npy", rng.normal(size=(len(examples), 8)).astype(np.float16))
    np.save(tmp_path / "documents.npy", rng.normal(size=(len(documents), 8)).astype(np.float16))
    np.save(tmp_path / "positives.npy", np.ones(len(examples), np.bool_))
    np.save(tmp_path / "negatives.npy", rng.integers(0, 40, (len(examples), 16)).astype(np.int32))
    return Stream(tmp_path, student[1], query_tokens=24, document_tokens=24)


@pytest.mark.parametrize("stage", ["representation", "joint", "reinforce"])
def test_a_stage_lowers_its_loss_on_one_batch(student: Made, stream: Stream, stage: str) -> None:
    made, codec = student
    config = Config(stage=stage, steps=1, batch=32, group=4, pool=20, budget=4)  # type: ignore[arg-type]
    learner = Learner(made, codec, stream, config)
    batch = stream.batch(0, 32, 1, seed=0)
    optimizer = torch.optim.Adam(made.trained().values(), 3e-3)
    losses, loss_function = [], loss_of(learner)
    for _ in range(6):
        optimizer.zero_grad()
        loss, parts = loss_function(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        # The reward's part of stage 3 is drawn anew each time; what is read behind thoughts is not.
        losses.append(parts["contrast"] if stage == "reinforce" else loss.item())
        assert all(np.isfinite(value) for value in parts.values())
    assert losses[-1] < losses[0]


@torch.no_grad()
def test_the_joint_stage_reads_own_thoughts_where_none_helps(
    student: Made, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, codec = student
    batch = stream.batch(0, 32, 1, seed=0)
    without = [at for at, e in enumerate(batch.examples) if not stream.thoughts[e]]
    asked: list[int] = []
    written = [[5, 6]] * len(without)

    def think(
        examples: NDArray[np.int64], **_: object
    ) -> tuple[list[list[int]], NDArray[np.bool_]]:
        asked.extend(examples.tolist())
        return written, np.ones(len(examples), np.bool_)

    share = len(without) / 32
    learner = Learner(made, codec, stream, Config(stage="joint", steps=1, own=share, writing=0.5))
    monkeypatch.setattr(learner, "think", think)
    loss, parts = joint_loss(learner, batch)
    assert asked == batch.examples[without].tolist()
    thoughts = [stream.thoughts[e] or [5, 6] for e in batch.examples]
    vectors, documents = (
        learner.behind(batch.examples, thoughts),
        learner.documents(batch.documents),
    )
    reading, expected = learner.reading_loss(vectors, documents, batch)
    assert parts["contrast"] == pytest.approx(expected["contrast"], abs=1e-4)
    direct, _ = learner.reading_loss(learner.direct(batch.examples), documents, batch)
    writing = learner.writing_loss(batch.examples, seed=batch.seed)
    assert float(loss) == pytest.approx(float(direct + reading + 0.5 * writing), abs=1e-3)


def test_a_batch_is_its_steps(stream: Stream) -> None:
    first, again = (stream.batch(3, 32, 1, seed=0) for _ in range(2))
    np.testing.assert_array_equal(first.documents, again.documents)
    assert not np.array_equal(first.examples, stream.batch(4, 32, 1, seed=0).examples)
    assert first.answers[np.arange(32), np.arange(32)].all()
    assert len(set(first.documents.tolist())) == len(first.documents)


def test_reinforcement_draws_what_was_judged(student: Made, stream: Stream, tmp_path: Path) -> None:
    judged = [at for at in range(len(stream.examples)) if at % 4]
    thoughts = [f"word {at}" if at in judged else None for at in range(len(stream.examples))]
    lines = b"".join(msgspec.json.encode(t) + b"\n" for t in thoughts)
    (tmp_path / "thoughts.jsonl").write_bytes(lines)
    judged_only = Stream(tmp_path, student[1], query_tokens=24, document_tokens=24, judged=True)
    drawn = {
        at for step in range(8) for at in judged_only.batch(step, 32, 1, seed=0).examples.tolist()
    }
    assert drawn <= set(judged)
    assert len(drawn) > 32


def test_half_of_a_batch_is_what_thoughts_helped(
    student: Made, stream: Stream, tmp_path: Path
) -> None:
    thoughts = ["word" if at % 5 == 0 else "" for at in range(len(stream.examples))]
    lines = b"".join(msgspec.json.encode(t) + b"\n" for t in thoughts)
    (tmp_path / "thoughts.jsonl").write_bytes(lines)
    drawing = Stream(
        tmp_path, student[1], query_tokens=24, document_tokens=24, together=4, helped=0.5
    )
    drawn = drawing.batch(0, 8, 1, seed=0).examples.tolist()
    sets = [stream.examples[at].set for at in drawn]
    assert len(set(drawn)) == 8
    assert sets == [sets[0]] * 4 + [sets[4]] * 4
    assert all(sum(at % 5 == 0 for at in drawn[half : half + 4]) >= 2 for half in (0, 4))


def test_sets_with_more_thoughts_are_drawn_more(
    student: Made, stream: Stream, tmp_path: Path
) -> None:
    thoughts = ["word" if e.set == "a" else "" for e in stream.examples]
    lines = b"".join(msgspec.json.encode(t) + b"\n" for t in thoughts)
    (tmp_path / "thoughts.jsonl").write_bytes(lines)
    joint = Stream(tmp_path, student[1], query_tokens=24, document_tokens=24, judged=True)
    drawn = [at for step in range(40) for at in joint.batch(step, 16, 1, seed=0).examples.tolist()]
    sets = [stream.examples[at].set for at in drawn]
    assert sets.count("a") > 2 * sets.count("b")


def test_train_and_dev_share_nothing() -> None:
    shared = [f"fact {at % 50}" for at in range(400)]
    found = [
        Pair(set="s", query=f"q {at}?", documents=[shared[at], f"own {at}"]) for at in range(400)
    ]
    documents, examples = split(found)
    parts = {
        part: {documents[d] for e in examples if e.part == part for d in e.positives}
        for part in ("train", "dev")
    }
    assert parts["dev"]
    assert not parts["train"] & parts["dev"]


def test_keywords_are_those_of_kept_answers(student: Made, stream: Stream, tmp_path: Path) -> None:
    done = CliRunner().invoke(write_keywords, ["--data", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    again = Stream(tmp_path, student[1], query_tokens=24, document_tokens=24)
    words = again.wording(0, np.random.default_rng(0), most=8, budget=16)
    # The tiny tokenizer spells the space as a token of its own, which no thought has twice.
    assert student[1].thought_text(words.tokens).strip() in ("answer", "number")
    (tmp_path / "keywords.jsonl").write_bytes(b"{}\n")
    stale = Stream(tmp_path, student[1], query_tokens=24, document_tokens=24)
    with pytest.raises(ValueError, match=r"1 examples for 80: run recipes\.nano\.keywords"):
        stale.wording(0, np.random.default_rng(0), most=8, budget=16)


def test_statistics_are_of_training_rows_with_thoughts_and_without(stream: Stream) -> None:
    rows = training_rows(stream, 8, seed=0)
    codec = stream.codec
    ends = [row[-2:] for row in rows[:8]]
    assert ends == [(codec.close_id, codec.emb_id)] * 8
    queries = {query: at for at, query in enumerate(stream.queries)}
    for turn, row in enumerate(rows[:8]):
        opened = row.index(codec.open_id) + 1
        assert stream.examples[queries[row[:opened]]].part == "train"
        assert (len(row) - 2 > opened) == bool(turn % 2)
    assert set(rows[8:]) <= set(stream.documents)


@pytest.mark.parametrize("config", _CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_a_run(config: Path) -> None:
    read_config(config)


def test_a_stream_without_thoughts_cannot_draw_those_that_helped(
    student: Made, stream: Stream, tmp_path: Path
) -> None:
    (tmp_path / "thoughts.jsonl").unlink()
    with pytest.raises(ValueError, match=r"run recipes\.nano\.thoughts"):
        Stream(tmp_path, student[1], query_tokens=24, document_tokens=24, helped=0.5)
    (tmp_path / "thoughts.jsonl").write_bytes(b'""\n')
    with pytest.raises(ValueError, match="1 lines for 80"):
        Stream(tmp_path, student[1], query_tokens=24, document_tokens=24)


def test_a_reader_reads_documents_once(student: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(*student, ["iron rusts", "red leaves", "a longer one about salt"])
    first = reader.documents([2, 0])
    both = reader.documents([0, 1, 2])
    np.testing.assert_array_equal(both[[2, 0]], first)
    assert abs(both[0] - both[1]).max() > 0.01
    monkeypatch.setattr(Student, "vectors", None)
    np.testing.assert_array_equal(reader.documents([2, 1, 0]), both[::-1])


def test_a_row_is_cut_before_its_last_two_tokens() -> None:
    assert cut((1, 2, 3, 4, 5, 6), 4) == (1, 2, 5, 6)
    assert cut((1, 2), 4) == (1, 2)


def test_an_interval_holds_the_difference() -> None:
    rng = np.random.default_rng(1)
    plain = rng.uniform(0, 0.5, 200)
    measured = [
        Measured(dataset="d", system="nano", ndcg=(plain + 0.1 + rng.normal(0, 0.1, 200)).tolist()),
        Measured(dataset="d", system="bm25", ndcg=plain.tolist()),
    ]
    (found,) = compare(measured, "nano", "bm25")
    assert found.low < 0.1 < found.high
    assert found.low > 0.05
    assert compare(measured, "nano", "nobody") == []


def test_every_claim_is_about_systems_that_are_measured(own_cache: Path) -> None:
    encoder, engine = scripted_encoder()
    engine.favourite = 40
    texts = ["ships float on water", "iron rusts", "locks guard a file"]
    dataset = Dataset(
        name="made",
        split="",
        documents=[Text(id=f"d{n}", text=text) for n, text in enumerate(texts)],
        queries=[Text(id="q0", text="a floating ship"), Text(id="q1", text="rusted iron")],
        qrels={"q0": {"d0": 1}, "q1": {"d1": 1}},
        excluded={},
        unjudged=0,
    )
    searcher = Searcher(encoder=encoder, dataset=dataset)
    measured = [found for n in (0, 4) for found in measure(searcher, "nano", n)]
    names = {found.system for found in measured} | {"bm25", "all-MiniLM-L6-v2"}
    pairs = list(claims(measured, "nano", control=None, float_build=None))
    assert {name for pair in pairs for name in pair} == names
