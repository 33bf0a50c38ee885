"""What a stage of training works on: a student, its data, and what losses are made of."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, normalize

from recipes.nano.config import Config
from recipes.nano.model import Student
from recipes.nano.stream import Batch, Stream
from t1_edge.contract import Codec

Parts = Mapping[str, float]
"""What a loss is made of, for the log."""


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
        end = self.codec.ending
        return (*self.stream.queries[int(example)], *thought, *end)

    def write_and_read(
        self, examples: NDArray[np.int64], thoughts: Sequence[Sequence[int]], *, least: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors behind thoughts, and how likely the thoughts were, in one pass.

        Args:
            examples: Questions, int64 [b].
            thoughts: Token ids, as `think` gave them.
            least: As `think` was given it.

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
        self._rule_out(scores, thoughts, least)
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
        self._rule_out(scores, [words.tokens for words in drawn])
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

    def _rule_out(self, scores: Tensor, thoughts: Sequence[Sequence[int]], least: int = 0) -> None:
        """Take from the scores at the places of thoughts, and behind, what `think` cannot draw."""
        ends = [self.codec.close_id, *self.codec.stop_ids]
        start = 0
        for thought in thoughts:
            scores[start : start + min(least, len(thought)), ends] = -torch.inf
            if self.codec.contract.distinct:
                for at in range(1, len(thought) + 1):
                    scores[start + at, list(thought[:at])] = -torch.inf
            start += len(thought) + 1

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
