"""What the gate asks: first of the float reference, then of each engine, in the same words.

Teacher-forced: vectors of whole rows, and scores of the next token along the reference's thoughts.
Free-running: what the engine thinks by itself, and the vectors behind that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from t1_edge.contract import Codec, Contract
from t1_edge.engines.base import Engine, Float32Array, Session
from t1_edge.golden import Golden, run_rows
from t1_edge.thinking import Thinking
from t1_edge.vectors import normalised
from t1_edge_export.golden_texts import DOCUMENTS, QUERIES

BUDGETS: Final = (0, 4, 16)
"""Nothing, a few words, and what contracts give when nobody says."""

Tokens = tuple[int, ...]


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """The questions.

    Attributes:
        contract: How thoughts are written.
        queries: Token rows that a thought continues.
        thoughts: What the reference thinks about each, at the largest budget.
        rows: Whole rows, each ending in `emb_token`.
        ends: For each budget, which of the rows holds the reference's thought about each query.
    """

    contract: Contract
    queries: tuple[Tokens, ...]
    thoughts: tuple[Tokens, ...]
    rows: tuple[Tokens, ...]
    ends: tuple[Tokens, ...]

    @property
    def texts(self) -> list[str]:
        """What each row was made of."""
        found = [""] * (len(self.rows) - len(DOCUMENTS))
        for ends in self.ends:
            for row, text in zip(ends, QUERIES, strict=True):
                found[row] = text
        return [*found, *DOCUMENTS]

    @property
    def documents(self) -> tuple[Tokens, ...]:
        """The rows of documents, which come last."""
        return self.rows[-len(DOCUMENTS) :]

    def thinking(self, step: int) -> list[int]:
        """The queries about which the reference chooses a token at a step."""
        return [row for row, thought in enumerate(self.thoughts) if step <= len(thought)]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What somebody answered.

    Attributes:
        library: Who: a library and its version.
        vectors: Of the whole rows, float32 [rows, d], L2-normalised.
        scores: Logits along the reference's thoughts, float32 [positions, vocabulary]: of every
            query that thinks at the first step, then at the second, and so on.
        thoughts: Written freely, at the largest budget.
        ends: Vectors behind thoughts written freely, float32 [budgets, queries, d], L2-normalised.
    """

    library: str
    vectors: Float32Array
    scores: Float32Array
    thoughts: Sequence[Tokens]
    ends: Float32Array

    def save(self, path: Path) -> None:
        """Write them to a file, for another process."""
        words = msgspec.json.encode([self.library, self.thoughts])
        np.savez(
            path,
            words=np.frombuffer(words, np.uint8),
            vectors=self.vectors,
            scores=self.scores,
            ends=self.ends,
        )

    @classmethod
    def load(cls, path: Path) -> "Answers":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            library, thoughts = msgspec.json.decode(
                file["words"].tobytes(), type=tuple[str, list[Tokens]]
            )
            return cls(
                library=library,
                thoughts=thoughts,
                **{name: file[name] for name in ("vectors", "scores", "ends")},
            )


def set_trial(engine: Engine, codec: Codec) -> tuple[Trial, Float32Array]:
    """Let the float reference set the questions.

    Args:
        engine: The reference. It runs once for each token of the largest budget, at most.
        codec: The contract, bound to the checkpoint's tokenizer.

    Returns:
        The trial, and the reference's scores along its thoughts, float32 [positions, vocabulary]:
        `Answers.scores`.
    """
    queries = tuple(codec.query(text).tokens for text in QUERIES)
    with _Scored(engine.start(queries, room=BUDGETS[-1] + 2)) as session:
        thinking = Thinking(session, len(queries), codec, budget=BUDGETS[-1])
        thinking.finish()
    thoughts = tuple(thought.tokens for thought in thinking.thoughts)
    ends = [
        [
            (*query, *thought[:budget], *codec.ending)
            for query, thought in zip(queries, thoughts, strict=True)
        ]
        for budget in BUDGETS
    ]
    documents = [(*codec.document(text).tokens, codec.emb_id) for text in DOCUMENTS]
    # A thought that ends early is one row at several budgets.
    rows = [*dict.fromkeys(chain.from_iterable(ends)), *documents]
    trial = Trial(
        contract=codec.contract,
        queries=queries,
        thoughts=thoughts,
        rows=tuple(rows),
        ends=tuple(tuple(map(rows.index, found)) for found in ends),
    )
    scores = [step[trial.thinking(at)] for at, step in enumerate(session.scores)]
    return trial, np.concatenate(scores)


def answer_own(engine: Engine, trial: Trial, scores: Float32Array) -> Answers:
    """Let who set the questions answer them: it runs once over the whole rows.

    Args:
        engine: The reference.
        trial: Its questions.
        scores: Its scores, float32 [positions, vocabulary], as `set_trial` gave them.

    Raises:
        EngineError: If a vector is not one.
    """
    vectors = run_rows(engine, trial.rows)
    return Answers(
        library=engine.info.library,
        vectors=vectors,
        scores=scores,
        thoughts=trial.thoughts,
        ends=vectors[np.array(trial.ends)],
    )


def ask(engine: Engine, codec: Codec, trial: Trial) -> Answers:
    """Let an engine answer.

    Args:
        engine: Opened on the files that are judged.
        codec: The trial's contract, bound to their tokenizer.
        trial: The questions.

    Raises:
        EngineError: If the engine fails, or a vector is not one.
    """
    ends = []
    thoughts: list[Tokens] = []
    for budget in BUDGETS:  # each by itself: a look on the way moves llama.cpp's batches
        with engine.start(trial.queries, room=budget + 2) as session:
            thinking = Thinking(session, len(trial.queries), codec, budget=budget)
            thinking.finish()
            ends.append(normalised(thinking.peek(), engine.info))
        thoughts = [thought.tokens for thought in thinking.thoughts]
    return Answers(
        library=engine.info.library,
        vectors=run_rows(engine, trial.rows),
        scores=_forced(engine, trial),
        thoughts=thoughts,
        ends=np.stack(ends),
    )


def golden(codec: Codec, trial: Trial, vectors: Float32Array) -> Golden:
    """The whole rows of a trial, for every machine that opens the build.

    Args:
        codec: The contract, bound to the checkpoint's tokenizer.
        trial: Whose rows.
        vectors: The reference's, float32 [rows, d].
    """
    asked = len(trial.rows) - len(DOCUMENTS)
    thoughts = [""] * len(trial.rows)
    for budget, ends in zip(BUDGETS, trial.ends, strict=True):
        for row, thought in zip(ends, trial.thoughts, strict=True):
            thoughts[row] = codec.thought_text(thought[:budget])
    return Golden(
        rows=trial.rows,
        vectors=vectors,
        texts=trial.texts,
        thoughts=thoughts,
        roles=["query"] * asked + ["document"] * len(DOCUMENTS),
    )


def _forced(engine: Engine, trial: Trial) -> Float32Array:
    """Scores along the reference's thoughts."""
    found = []
    with engine.start(trial.queries, room=BUDGETS[-1] + 1) as session:
        for step in range(BUDGETS[-1]):
            rows = trial.thinking(step)
            if not rows:
                break
            found.append(session.logits()[rows])
            session.append(
                {row: trial.thoughts[row][step] for row in rows if step < len(trial.thoughts[row])}
            )
    return np.concatenate(found)


class _Scored:
    """A session that keeps the logits it was asked for, step by step, in `scores`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.scores: list[Float32Array] = []

    def append(self, tokens: Mapping[int, int]) -> None:
        self._session.append(tokens)

    def logits(self) -> Float32Array:
        self.scores.append(self._session.logits())
        return self.scores[-1]

    def peek(self, *tokens: int) -> Float32Array:
        return self._session.peek(*tokens)

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> "_Scored":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
