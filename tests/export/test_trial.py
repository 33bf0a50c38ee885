"""What the gate asks, and what it makes of the answers."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from t1_edge.build import Build, Format
from t1_edge.contract import Codec
from t1_edge.engines.fake import FakeEngine, FakeSession
from t1_edge.errors import EngineError
from t1_edge.tokenization import TextTokenizer
from t1_edge_export.checkpoint import open_checkpoint
from t1_edge_export.gate import BOUNDS, _agreed, _figures, _worst_texts, divergence
from t1_edge_export.golden_texts import DOCUMENTS, QUERIES
from t1_edge_export.trial import BUDGETS, Answers, Trial, answer_own, ask, golden, set_trial
from t1_edge_export.trial_process import ask_documents, ask_format
from t1_edge_export.vocabulary import with_tokens
from tiny import KNOWN, TINY_CONTRACT, Tiny

Float32Array = NDArray[np.float32]
LENGTHS = (0, 2, 16, 3, 1, 4, 15, 5)


class Scripted(FakeEngine):
    """Thinks what it was told to about each query, and closes the thought behind it."""

    def __init__(self, codec: Codec, thoughts: Sequence[Sequence[int]]) -> None:
        super().__init__(vocabulary=KNOWN + 3)
        queries = [codec.query(text).tokens for text in QUERIES]
        self.wanted = {
            (*query, *thought[:at]): token
            for query, thought in zip(queries, thoughts, strict=True)
            for at, token in enumerate([*thought, codec.close_id])
        }

    def start(self, rows: Sequence[Sequence[int]], *, room: int) -> FakeSession:
        session = super().start(rows, room=room)
        return _Scripted(self, session)  # type: ignore[return-value]


class _Scripted:
    def __init__(self, engine: Scripted, session: FakeSession) -> None:
        self._engine, self._session = engine, session
        self.append, self.peek, self.close = session.append, session.peek, session.close

    def logits(self) -> Float32Array:
        scores = self._session.logits()
        for row, tokens in zip(scores, self._session._rows.tokens, strict=True):
            if (token := self._engine.wanted.get(tuple(tokens))) is not None:
                row[token] = row.max() + 1
        return scores

    def __enter__(self) -> "_Scripted":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@pytest.fixture(scope="module")
def codec(tiny: Callable[..., Tiny]) -> Codec:
    checkpoint = with_tokens(open_checkpoint(tiny("llama").folder), TINY_CONTRACT)
    return Codec(TINY_CONTRACT, TextTokenizer(checkpoint.tokenizer))


def _thoughts(**changed: tuple[int, int]) -> list[list[int]]:
    """Thoughts of many lengths; query2=(3, 9) has token 9 at place 3 of the third."""
    found = [list(range(20, 20 + length)) for length in LENGTHS]
    for query, (place, token) in changed.items():
        found[int(query.removeprefix("query"))][place] = token
    return found


def _asked(codec: Codec) -> tuple[Trial, Answers]:
    engine = Scripted(codec, _thoughts())
    trial, scores = set_trial(engine, codec)
    return trial, answer_own(engine, trial, scores)


def test_thoughts_that_end_early_are_one_row(codec: Codec) -> None:
    trial, truth = _asked(codec)
    assert [len(thought) for thought in trial.thoughts] == list(LENGTHS)
    assert len(trial.rows) == len(set(trial.rows))
    assert len(trial.rows) == 8 + 7 + 3 + len(DOCUMENTS)  # one is empty, three are longer than four
    assert trial.rows[:4] == tuple(
        (*query, codec.close_id, codec.emb_id) for query in trial.queries[:4]
    )
    assert truth.vectors.shape[0] == len(trial.rows)
    # Each token of a thought is a choice, and so is closing it before the budget ends.
    assert len(truth.scores) == sum(min(length + 1, BUDGETS[-1]) for length in LENGTHS)
    found = golden(codec, trial, truth.vectors)
    assert found.texts[:8] == list(QUERIES)
    assert found.texts[-12:] == list(DOCUMENTS)
    assert found.thoughts[:8] == [""] * 8
    assert found.thoughts[trial.ends[2][2]] == codec.thought_text(range(20, 36))


def test_who_answers_the_same_is_the_same(codec: Codec) -> None:
    trial, truth = _asked(codec)
    found = ask(Scripted(codec, _thoughts()), codec, trial)
    figures = _figures(truth, found, BOUNDS["float"])
    assert figures.cosine_min == figures.cosine_p1 == 1
    assert figures.divergence_max == 0
    assert [free.same for free in figures.free] == [1, 1]
    assert figures.free[1].agreed == pytest.approx(np.mean(LENGTHS))
    assert figures.free[0].agreed == pytest.approx(np.minimum(LENGTHS, 4).mean())


def test_a_token_that_flips_shows_where_it_should(codec: Codec) -> None:
    trial, truth = _asked(codec)
    found = ask(Scripted(codec, _thoughts(query2=(5, 99))), codec, trial)
    figures = _figures(truth, found, BOUNDS["float"])
    assert figures.cosine_min == 1  # teacher-forced, the same tokens go in
    # From the place on where it would choose another, along a thought that it was not told of.
    assert np.count_nonzero(divergence(truth.scores, found.scores) > 1e-6) == 16 - 5
    short, long = figures.free
    assert (short.same, long.same) == (1, 7 / 8)
    assert long.agreed == pytest.approx((sum(LENGTHS) - 11) / 8)
    assert long.cosine_min < 1


def test_the_furthest_texts_are_named(codec: Codec) -> None:
    trial, truth = _asked(codec)
    vectors = truth.vectors.copy()
    vectors[-3] *= -1
    vectors[trial.ends[1][4]] *= -0.5
    bent = Answers(
        library="", vectors=vectors, scores=truth.scores, thoughts=truth.thoughts, ends=truth.ends
    )
    assert _worst_texts(trial.texts, truth.vectors, bent.vectors)[:2] == [DOCUMENTS[-3], QUERIES[4]]


def test_divergence_is_that_of_torch() -> None:
    random = np.random.default_rng(0)
    truth, found = random.standard_normal((2, 5, 300)).astype(np.float32) * 3
    p, q = (torch.tensor(logits).log_softmax(1) for logits in (truth, found))
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(1)
    np.testing.assert_allclose(divergence(truth, found), expected.numpy(), rtol=1e-4)


@pytest.mark.parametrize(
    ("one", "other", "agreed"),
    [((), (), 0), ((1, 2), (1, 2), 2), ((1, 2, 3), (1, 2), 2), ((1, 2), (3, 2), 0)],
)
def test_tokens_agree_up_to_the_first_that_differs(
    one: tuple[int, ...], other: tuple[int, ...], agreed: int
) -> None:
    assert _agreed(one, other) == _agreed(other, one) == agreed


def test_answers_come_back(codec: Codec, tmp_path: Path) -> None:
    _, truth = _asked(codec)
    truth.save(tmp_path / "answers.npz")
    found = Answers.load(tmp_path / "answers.npz")
    assert (found.library, found.thoughts) == (truth.library, list(truth.thoughts))
    for name in ("vectors", "scores", "ends"):
        np.testing.assert_array_equal(getattr(found, name), getattr(truth, name))


@pytest.fixture(scope="module")
def trial(codec: Codec) -> Trial:
    return set_trial(Scripted(codec, _thoughts()), codec)[0]


@pytest.mark.parametrize("format", ["onnx", "gguf"])
def test_a_process_of_its_own_imports_nothing_from_where_it_stands(
    tiny_build: Callable[..., Build],
    trial: Trial,
    format: Format,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    build = tiny_build("llama", "float")
    found = ask_format(
        build.path, format, build.manifest.decoder, trial, exact=True, scratch=tmp_path
    )
    assert found.vectors.shape == (len(trial.rows), build.manifest.decoder.hidden)
    assert [path.name for path in tmp_path.iterdir()] == ["msgspec.py"]


def test_what_an_engine_refuses_is_said(
    tiny_build: Callable[..., Build], trial: Trial, tmp_path: Path
) -> None:
    build = tiny_build("llama", "float")
    (tmp_path / "tokenizer.json").write_bytes(build.file("tokenizer.json").read_bytes())
    (tmp_path / "model.gguf").write_bytes(b"GGUF, and no more")
    with pytest.raises(EngineError, match=r"gguf cannot be verified: llama\.cpp cannot open"):
        ask_format(tmp_path, "gguf", build.manifest.decoder, trial, exact=True, scratch=tmp_path)


@pytest.mark.parametrize(
    ("code", "message"),
    [("import os; os.kill(os.getpid(), 9)", "memory runs out"), ("1 / 0", "ZeroDivisionError")],
)
def test_an_engine_that_dies_takes_nothing_with_it(
    trial: Trial,
    tiny_build: Callable[..., Build],
    code: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crash = tmp_path / "crash"
    crash.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}'\n")
    crash.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crash))
    decoder = tiny_build("llama", "float").manifest.decoder
    with pytest.raises(EngineError, match=rf"(?s)onnx cannot be verified.*{message}"):
        ask_format(tmp_path, "onnx", decoder, trial, exact=True, scratch=tmp_path)
    with pytest.raises(EngineError, match=rf"(?s)documents cannot be verified.*{message}"):
        ask_documents(tmp_path, decoder, trial, scratch=tmp_path)
