"""The student that nano's recipe trains: what it keeps, what learns, and what it reads at once."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from recipes.nano.config import Config
from recipes.nano.learner import Learner
from recipes.nano.model import Student, new_student
from recipes.nano.stream import Stream
from t1_edge.contract import Codec
from tiny import Tiny

Make = Callable[..., tuple[Student, Codec]]


@pytest.fixture
def make(tiny: Callable[..., Tiny]) -> Make:
    def made(first_layer: int = 1, cached_tokens: int = 0) -> tuple[Student, Codec]:
        student, codec = new_student(
            str(tiny("llama").folder),
            rank=4,
            alpha=8,
            first_layer=first_layer,
            cached_tokens=cached_tokens,
        )
        torch.manual_seed(0)  # here: loading torch's models for the first time draws numbers too
        with torch.no_grad():
            for parameter in student.trained().values():
                parameter.copy_(torch.randn_like(parameter) * 0.1)
        return student.float(), codec

    return made


def _documents(codec: Codec) -> list[tuple[int, ...]]:
    texts = ["a longer one about salt", "iron rusts", "red", "iron rusts"]
    return [(*codec.document(text).tokens, codec.emb_id) for text in texts]


def _queries(codec: Codec) -> list[tuple[int, ...]]:
    texts = ["why is the sea salt", "what rusts"]
    return [(*codec.query(text).tokens, codec.close_id, codec.emb_id) for text in texts]


def _states(student: Student, row: tuple[int, ...]) -> torch.Tensor:
    return student.states([row], [range(len(row))])


@pytest.mark.parametrize("room", [1000, 20])
def test_what_is_kept_changes_no_vector(make: Make, room: int) -> None:
    (plain, codec), (keeping, _) = make(), make(cached_tokens=room)
    rows = [*_documents(codec), *_queries(codec)]
    with torch.no_grad():
        for scale in (1.0, 1.5):  # the trained blocks and the closing row change between
            for student in (plain, keeping):
                for name, parameter in student.trained().items():
                    learns = slice(None) if name != "rows" else codec.close_id - student.first_new
                    parameter[learns] *= scale
            expected = plain.vectors(rows)
            for _ in range(2):
                found = keeping.vectors(rows, keep=True, most=40)
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_what_is_kept_is_not_computed_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    student, codec = make(cached_tokens=1000)
    rows = _documents(codec)
    with torch.no_grad():
        first = student.vectors(rows, keep=True)
        monkeypatch.setattr(Student, "_embed", None)
        torch.testing.assert_close(student.vectors(rows), first)
        with pytest.raises(TypeError):  # a question holds a token that learns
            student.vectors(_queries(codec))


def test_nothing_is_kept_where_everything_learns(make: Make) -> None:
    with pytest.raises(ValueError, match="first_layer = 0"):
        make(first_layer=0, cached_tokens=1)


@pytest.mark.parametrize("first_layer", [0, 1])
def test_equal_rows_have_equal_vectors_and_a_gradient(make: Make, first_layer: int) -> None:
    student, codec = make(first_layer)
    found = student.vectors(_documents(codec))
    assert torch.equal(found[1], found[3])
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for name, p in student.trained().items() if name != "rows")


def test_of_the_new_rows_the_closing_one_learns(make: Make) -> None:
    student, codec = make()
    states = _states(student, _queries(codec)[0])
    student.logits(states).logsumexp(-1).sum().backward()  # type: ignore[no-untyped-call]
    assert student.rows.grad is not None
    moved = student.rows.grad.abs().sum(1) > 0
    assert moved.nonzero().flatten().tolist() == [codec.close_id - student.first_new]


def test_an_adapter_of_other_layers_is_refused(make: Make, tmp_path: Path) -> None:
    make(first_layer=0)[0].save(tmp_path, "base")
    with pytest.raises(ValueError, match=r"adapts other layers .* only one has .*layers\.0\."):
        make(first_layer=1)[0].load(tmp_path)


@pytest.fixture
def stream(make: Make, tmp_path: Path) -> Callable[..., Stream]:
    """Two sets of twenty questions, one document each."""
    codec = make()[1]
    encode = msgspec.json.encode
    documents = [{"text": f"document {at}"} for at in range(40)]
    examples = [
        {"set": "ab"[at % 2], "part": "train", "query": f"query {at}", "positives": [at]}
        for at in range(40)
    ]
    for name, lines in (("documents", documents), ("examples", examples)):
        (tmp_path / f"{name}.jsonl").write_bytes(b"".join(encode(x) + b"\n" for x in lines))
    words = [{"salt": 3.0, "iron": 2.0, "rust": 1.0} if at % 4 else {} for at in range(40)]
    (tmp_path / "keywords.jsonl").write_bytes(b"".join(encode(x) + b"\n" for x in words))
    for name in ("queries", "documents"):
        np.save(tmp_path / f"{name}.npy", np.eye(40, dtype=np.float16))
    np.save(tmp_path / "positives.npy", np.ones(40, np.bool_))
    np.save(tmp_path / "negatives.npy", np.full((40, 16), -1, np.int32))

    def made(thoughts: list[str | None] | None = None, **settings: object) -> Stream:
        if thoughts is not None:
            lines = b"".join(encode(text) + b"\n" for text in thoughts)
            (tmp_path / "thoughts.jsonl").write_bytes(lines)
        settings = {"query_tokens": 24, "document_tokens": 24, "together": 4} | settings
        return Stream(tmp_path, codec, **settings)  # type: ignore[arg-type]

    return made


@pytest.mark.parametrize("least", [0, 1])
def test_writing_and_reading_is_a_plain_pass(
    make: Make, stream: Callable[..., Stream], least: int
) -> None:
    student, codec = make()
    learner = Learner(student, codec, stream(), Config(stage="joint", steps=1))
    examples, thoughts = np.array([7, 12, 3]), [[5, 6, 7], [], [9]]
    with torch.no_grad():
        vectors, likely, owners = learner.write_and_read(examples, thoughts, least=least)
        assert owners.tolist() == [0] * 4 + [1] + [2] * 2
        for at, (example, thought) in enumerate(zip(examples, thoughts, strict=True)):
            query = learner.stream.queries[example]
            row = (*query, *thought, codec.close_id, codec.emb_id)
            states = _states(student, row)
            last = torch.nn.functional.normalize(states[-1], dim=-1)
            torch.testing.assert_close(vectors[at], last, atol=1e-5, rtol=0)
            scores = student.logits(states)[len(query) - 1 : -2]
            for step in range(len(thought) + 1):  # what is written is not written again
                scores[step, thought[:step]] = -torch.inf
            scores[: min(least, len(thought)), [codec.close_id, *codec.stop_ids]] = -torch.inf
            expected = [
                float(scores.log_softmax(-1)[step, token])
                for step, token in enumerate((*thought, codec.close_id))
            ]
            np.testing.assert_allclose(likely[owners == at], expected, atol=1e-4)


def test_writing_is_learnt_at_each_place_of_a_thought(
    make: Make, stream: Callable[..., Stream]
) -> None:
    student, codec = make()
    config = Config(stage="joint", steps=1, keywords=2, budget=8)
    learner = Learner(student, codec, stream(), config)
    examples = np.array([3, 12, 5])
    rng, expected = np.random.default_rng(9), []
    with torch.no_grad():
        found = learner.writing_loss(examples, seed=9)
        for example in examples.tolist():
            words = learner.stream.wording(example, rng, most=2, budget=8)
            query = learner.stream.queries[example]
            scores = student.logits(_states(student, (*query, *words.tokens)))[len(query) - 1 :]
            assert len(scores) == len(words.goals)
            for at, (row, goal) in enumerate(zip(scores, words.goals, strict=True)):
                row[[*words.tokens[:at]]] = -torch.inf
                likely = row.log_softmax(-1)
                expected.append(-sum(p * float(likely[token]) for token, p in goal.items()))
    assert len(expected) > len(examples)
    assert float(found) == pytest.approx(np.mean(expected), abs=1e-4)


def test_words_of_documents_are_predicted_on_the_way(
    make: Make, stream: Callable[..., Stream]
) -> None:
    student, codec = make(cached_tokens=1000)
    learner = Learner(student, codec, stream(), Config(stage="representation", steps=1, words=2))
    chosen = np.array([4, 31])
    with torch.no_grad():
        vectors, likely = learner.documents_and_words(chosen)
        torch.testing.assert_close(vectors, learner.documents(chosen), atol=1e-5, rtol=0)
        row = learner.stream.documents[4]
        scores = student.logits(_states(student, row)).log_softmax(-1)
    possible = [float(scores[at, row[at + 1]]) for at in range(1, len(row) - 3)]
    assert len(likely) == 4
    for found in likely[:2].tolist():
        assert min(abs(found - value) for value in possible) < 1e-4
    with torch.no_grad():
        assert torch.equal(likely, learner.documents_and_words(chosen)[1])


def test_a_set_with_a_weight_is_drawn_more(stream: Callable[..., Stream]) -> None:
    drawing = stream(weights={"b": 9.0})
    drawn = [at for step in range(40) for at in drawing.batch(step, 8, 0, seed=0).examples]
    assert 0.8 < np.mean([drawing.examples[at].set == "b" for at in drawn]) < 1
    with pytest.raises(ValueError, match="no set 'c'"):
        stream(weights={"c": 1.0})


def test_a_set_that_runs_out_gives_what_it_has(stream: Callable[..., Stream]) -> None:
    thoughts = ["word" if at < 6 else None for at in range(40)]
    drawn = stream(thoughts, judged=True).batch(0, 16, 0, seed=0).examples.tolist()
    assert len(drawn) == len(set(drawn)) < 16
    assert set(drawn) <= set(range(6))


def test_a_set_without_a_judged_example_is_left_out(stream: Callable[..., Stream]) -> None:
    thoughts = ["word" if at % 2 else None for at in range(40)]
    drawn = stream(thoughts, judged=True).batch(0, 16, 0, seed=0).examples
    assert (drawn % 2 == 1).all()
    with pytest.raises(ValueError, match=r"run recipes\.nano\.thoughts"):
        stream([None] * 40, judged=True)
