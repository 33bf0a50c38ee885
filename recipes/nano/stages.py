"""The losses of the three stages, over one student and one stream."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, normalize

from recipes.nano.config import Config
from recipes.nano.model import Frozen, Student
from recipes.nano.stream import Batch, Stream
from t1_edge.contract import Codec

Parts = Mapping[str, float]

_OWN_TEMPERATURE: Final = 0.7
"""Of the thoughts that the joint stage reads: near the runtime's greedy ones, and not one alone."""


@dataclass
class Learner:
    """What a stage works on.

    Attributes:
        student: The model.
        codec: Its contract.
        stream: Its data.
        config: The run.
    """

    student: Student
    codec: Codec
    stream: Stream
    config: Config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.student.rows.device

    @cached_property
    def judge(self) -> "Judge":
        """The student as it was when it was first asked for; it ranks what thoughts find."""
        return Judge(self)

    def direct(self, examples: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Vectors of questions behind an empty thought, float32 [b, d]."""
        return self.behind(examples, [()] * len(examples))

    def behind(
        self, examples: Sequence[int] | NDArray[np.int64], thoughts: Sequence[Sequence[int]]
    ) -> Tensor:
        """Vectors of questions behind a thought each, float32 [b, d]."""
        rows = [self.row(at, thought) for at, thought in zip(examples, thoughts, strict=True)]
        return self.student.vectors(rows)

    def think(
        self, examples: NDArray[np.int64], *, temperature: float, least: int = 0, seed: int = 0
    ) -> tuple[list[list[int]], NDArray[np.bool_]]:
        """Thoughts within the run's budget.

        Args:
            examples: Questions, int64 [b].
            temperature: Of the softmax; 0 is greedy.
            least: Tokens that a thought has at least.
            seed: Of what is drawn.

        Returns:
            Their token ids without what ended them, and which closed by themselves, bool [b].
        """
        codec = self.codec
        ends = [codec.close_id, *codec.stop_ids]
        drawn = self.student.think(
            [self.stream.queries[int(at)] for at in examples],
            budget=self.config.budget,
            ends=ends,
            distinct=codec.contract.distinct,
            least=least,
            temperature=temperature,
            generator=torch.Generator(self.device).manual_seed(seed),
        )
        closed = np.array([thought[-1] == codec.close_id for thought in drawn])
        return [[token for token in thought if token not in ends] for thought in drawn], closed

    def documents(self, chosen: NDArray[np.int64]) -> Tensor:
        """Vectors of documents, float32 [n, d]."""
        return self.student.vectors([self.stream.documents[at] for at in chosen], keep=True)

    def row(self, example: int | np.int64, thought: Sequence[int]) -> tuple[int, ...]:
        """A question, its thought, and what closes it."""
        end = (self.codec.close_id, self.codec.emb_id)
        return (*self.stream.queries[int(example)], *thought, *end)

    def write_and_read(
        self, examples: NDArray[np.int64], thoughts: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors behind thoughts, and how likely the thoughts were, in one pass.

        Args:
            examples: Questions, int64 [b].
            thoughts: Token ids.

        Returns:
            Vectors, float32 [b, d]; the log-probability of each token of the thoughts and of the
            token that closes them, float32 [tokens]; which example it belongs to, int64 [tokens].
        """
        rows = [self.row(at, thought) for at, thought in zip(examples, thoughts, strict=True)]
        begins = [len(self.stream.queries[at]) - 1 for at in examples]
        writes = [
            range(begin, begin + len(thought) + 1)
            for begin, thought in zip(begins, thoughts, strict=True)
        ]
        vectors, scores, goals = self._read_and_score(rows, writes)
        if self.codec.contract.distinct:
            places, written = _written(thoughts)
            scores[places, written] = -torch.inf
        likely = -cross_entropy(scores, goals, reduction="none")
        owners = torch.tensor([owner for owner, own in enumerate(writes) for _ in own])
        return vectors, likely, owners.to(self.device)

    def writing_loss(self, examples: NDArray[np.int64], *, seed: int) -> Tensor:
        """Cross-entropy with words of the answers, mean over the places of a thought.

        Args:
            examples: Questions, int64 [b].
            seed: Of which words, and in which order.
        """
        rng, config = np.random.default_rng(seed), self.config
        drawn = [
            self.stream.wording(int(at), rng, most=config.keywords, budget=config.budget)
            for at in examples
        ]
        queries = [self.stream.queries[at] for at in examples]
        rows = [(*row, *words.tokens) for row, words in zip(queries, drawn, strict=True)]
        begins = [range(len(own) - 1, len(row)) for own, row in zip(queries, rows, strict=True)]
        scores = self.student.logits(self.student.states(rows, begins))
        if self.codec.contract.distinct:
            places, written = _written([words.tokens for words in drawn])
            scores[places, written] = -torch.inf
        goals = [goal for words in drawn for goal in words.goals]
        lines = [line for line, goal in enumerate(goals) for _ in goal]
        shares = torch.tensor([p for goal in goals for p in goal.values()], device=self.device)
        likely = scores.log_softmax(-1)[lines, [token for goal in goals for token in goal]]
        return -(shares * likely).sum() / len(goals)

    def documents_and_words(self, chosen: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Vectors of documents, and how likely some of their words are, in one pass.

        Returns:
            Vectors, float32 [n, d]; the log-probability of up to `config.words` tokens of each
            document, the same ones always, float32 [tokens].
        """
        rows = [self.stream.documents[at] for at in chosen]
        # The template's first token has nothing before it; its last, and emb_token, are no words.
        inner = [np.arange(1, len(row) - 3) for row in rows]
        writes = [
            np.random.default_rng(int(at)).permutation(places)[: self.config.words].tolist()
            for at, places in zip(chosen, inner, strict=True)
        ]
        vectors, scores, goals = self._read_and_score(rows, writes, keep=True)
        return vectors, -cross_entropy(scores, goals, reduction="none")

    def _read_and_score(
        self,
        rows: Sequence[tuple[int, ...]],
        writes: Sequence[Sequence[int]],
        *,
        keep: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors at the ends of rows; scores of what follows some places, and what does."""
        places = [(*own, len(row) - 1) for own, row in zip(writes, rows, strict=True)]
        states = self.student.states(rows, places, keep=keep)
        ends = torch.tensor([*itertools.accumulate(map(len, places))], device=self.device) - 1
        inner = torch.ones(len(states), dtype=torch.bool, device=self.device)
        inner[ends] = False
        goals = [row[at + 1] for own, row in zip(writes, rows, strict=True) for at in own]
        goal = torch.tensor(goals, device=self.device)
        scores = self.student.logits(states[inner])
        return normalize(states[ends].float(), dim=-1), scores, goal

    def reading_loss(
        self, queries: Tensor, documents: Tensor, batch: Batch
    ) -> tuple[Tensor, Parts]:
        """InfoNCE with in-batch and hard negatives, and the divergence from the teacher's ranking.

        Args:
            queries: float32 [b, d], unit rows.
            documents: float32 [n, d], unit rows, the positives first.
            batch: Which they are; another answer to a question is no negative of it.
        """
        config = self.config
        scores = queries @ documents.T / config.temperature
        own = torch.eye(*scores.shape, dtype=torch.bool, device=self.device)
        others = torch.from_numpy(batch.answers).to(self.device) & ~own
        target = torch.arange(len(queries), device=self.device)
        contrast = cross_entropy(scores.masked_fill(others, -torch.inf), target)
        goal = torch.from_numpy(self.stream.teacher(batch)).to(self.device)
        divergence = kl_div(
            scores.log_softmax(-1),
            (goal / config.teacher_temperature).log_softmax(-1),
            reduction="batchmean",
            log_target=True,
        )
        parts = {"contrast": contrast.item(), "divergence": divergence.item()}
        return contrast + config.distillation * divergence, parts


def representation(learner: Learner, batch: Batch) -> tuple[Tensor, Parts]:
    """Stage 1: questions without a thought find their documents.

    With `config.words`, the student goes on predicting the words of documents meanwhile: without,
    it forgets how to write (docs/LOG.md).
    """
    queries = learner.direct(batch.examples)
    if not learner.config.words:
        return learner.reading_loss(queries, learner.documents(batch.documents), batch)
    documents, likely = learner.documents_and_words(batch.documents)
    loss, parts = learner.reading_loss(queries, documents, batch)
    words = -likely.mean()
    return loss + learner.config.writing * words, {**parts, "words": words.item()}


def joint(learner: Learner, batch: Batch) -> tuple[Tensor, Parts]:
    """Stage 2: with a thought and without, and writing the words of what answers.

    A share `config.own` is read behind what the student writes itself, first of all where no
    thought helps: one that has only ever read good thoughts believes its own too much
    (docs/LOG.md). The direct control has the first half alone.
    """
    documents = learner.documents(batch.documents)
    loss, empty = learner.reading_loss(learner.direct(batch.examples), documents, batch)
    parts = {f"empty_{name}": value for name, value in empty.items()}
    if not learner.config.thoughts:
        return loss, parts
    seed = int(batch.documents.sum())
    thoughts: list[Sequence[int]] = [learner.stream.thoughts[at] for at in batch.examples]
    if own := _readers_of_own(thoughts, learner.config.own):
        written, _ = learner.think(batch.examples[own], temperature=_OWN_TEMPERATURE, seed=seed)
        for at, thought in zip(own, written, strict=True):
            thoughts[at] = thought
    vectors = learner.behind(batch.examples, thoughts)
    reading, found = learner.reading_loss(vectors, documents, batch)
    writing = learner.writing_loss(batch.examples, seed=seed)
    loss = loss + reading + learner.config.writing * writing
    return loss, {**parts, **found, "writing": writing.item()}


def _written(thoughts: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Places of thoughts and their ends, one after the other, and tokens that stand before them.

    A thought that was given may hold a token twice: it is not ruled out where it comes again.
    """
    places: list[int] = []
    tokens: list[int] = []
    start = 0
    for thought in thoughts:
        for at in range(len(thought) + 1):
            before = set(thought[:at]) - set(thought[at : at + 1])
            places += [start + at] * len(before)
            tokens += before
        start += len(thought) + 1
    return places, tokens


def _readers_of_own(thoughts: Sequence[Sequence[int]], share: float) -> list[int]:
    """Which examples of a batch are read behind their own thoughts: those without one first."""
    return sorted(range(len(thoughts)), key=lambda at: bool(thoughts[at]))[
        : round(share * len(thoughts))
    ]


def reinforce(learner: Learner, batch: Batch) -> tuple[Tensor, Parts]:
    """Stage 3: GRPO (arXiv 2402.03300), one update a batch.

    A thought's reward is what it changes in the log-rank of the best answer against no thought, as
    the frozen student ranks, and a bonus for closing by itself. Meanwhile the student learns to
    read what it writes: the joint stage showed it thoughts better than its own.
    """
    config = learner.config
    examples = np.repeat(batch.examples, config.group)
    seed = int(batch.documents.sum())
    thoughts, closed = learner.think(examples, temperature=1.0, least=config.least, seed=seed)
    gains = learner.judge.gains(batch, thoughts)
    rewards = (gains + config.closing * closed).reshape(-1, config.group)
    spread = rewards.std(axis=1, keepdims=True)
    advantages = (rewards - rewards.mean(axis=1, keepdims=True)) / (spread + 1e-4)
    vectors, likely, owners = learner.write_and_read(examples, thoughts)
    weights = torch.from_numpy(advantages.reshape(-1).astype(np.float32)).to(learner.device)
    # A thought that ran out of budget did not choose to close.
    chose = torch.ones_like(likely)
    ends = torch.cumsum(torch.tensor([len(t) + 1 for t in thoughts], device=learner.device), 0) - 1
    chose[ends] = torch.from_numpy(closed.astype(np.float32)).to(learner.device)
    policy = -(weights[owners] * likely * chose).sum() / chose.sum()
    documents = learner.documents(batch.documents)
    direct, _ = learner.reading_loss(learner.direct(batch.examples), documents, batch)
    # One thought of each question: they are drawn alike.
    behind, read = learner.reading_loss(vectors[:: config.group], documents, batch)
    parts = {
        "reward": float(rewards.mean()),
        "gain": float(gains.mean()),
        "helped": float((gains > 0).mean()),
        "hurt": float((gains < 0).mean()),
        "closed": float(closed.mean()),
        "length": float(np.mean([len(thought) for thought in thoughts])),
    }
    return policy + config.reading * (direct + behind), {**parts, **read}


class Judge:
    """The student as it stands now, kept to rank with.

    Args:
        learner: Whose student; the documents are read once, here.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._frozen = Frozen(learner.student)
        self._pool = learner.stream.pool(learner.config.pool)
        with torch.no_grad():
            self._documents = learner.documents(self._pool)

    @torch.no_grad()
    def gains(self, batch: Batch, thoughts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """How far each thought lifts the best answer: log-rank without it less that with it.

        Args:
            batch: b questions and their documents.
            thoughts: Token ids, as many for each question, one question after the other.

        Returns:
            float32 [thoughts].
        """
        learner, group = self._learner, len(thoughts) // len(batch.examples)
        examples = np.repeat(batch.examples, group)
        with self._frozen.restored():
            own = learner.documents(batch.documents)
            empty = learner.direct(batch.examples)
            thought = learner.behind(examples, thoughts)
        documents = torch.cat([own, self._documents])
        known = np.concatenate([batch.documents, self._pool])
        answers = torch.from_numpy(learner.stream.answers(batch.examples, known)).to(own.device)
        before = log_ranks(empty @ documents.T, answers)
        after = log_ranks(thought @ documents.T, answers.repeat_interleave(group, 0))
        return (before.repeat_interleave(group) - after).cpu().numpy()


def log_ranks(scores: Tensor, answers: Tensor) -> Tensor:
    """Natural log of the rank of the best answer, float32 [b].

    Args:
        scores: float32 [b, n].
        answers: bool [b, n], one true in each row at least.
    """
    best = scores.masked_fill(~answers, -torch.inf).max(1, keepdim=True).values
    return ((scores > best) & ~answers).sum(1).float().log1p()


STAGES = {"representation": representation, "joint": joint, "reinforce": reinforce}
"""By the name that a config gives."""
