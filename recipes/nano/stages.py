"""The losses of the three stages, over one student and one stream."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor

from recipes.nano.learner import Learner, Parts
from recipes.nano.reward import RewardModel
from recipes.nano.stream import Batch

Loss = Callable[[Batch], tuple[Tensor, Parts]]

_OWN_TEMPERATURE: Final = 0.7
"""Of the thoughts that the joint stage reads: near the runtime's greedy ones, and not one alone."""


def loss_of(learner: Learner) -> Loss:
    """The loss of the stage that the learner's config names."""
    match learner.config.stage:
        case "representation":
            return partial(representation, learner)
        case "joint":
            return partial(joint, learner)
        case "reinforce":
            return Reinforcement(learner)


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
    thought is known to help: one that has only ever read good thoughts believes its own too much
    (docs/LOG.md). The direct control has the first half alone.
    """
    documents = learner.documents(batch.documents)
    loss, empty = learner.reading_loss(learner.direct(batch.examples), documents, batch)
    parts = {f"empty_{name}": value for name, value in empty.items()}
    if not learner.config.thoughts:
        return loss, parts
    thoughts: list[Sequence[int]] = [learner.stream.thoughts[at] for at in batch.examples]
    if own := _readers_of_own(thoughts, learner.config.own):
        written, _ = learner.think(
            batch.examples[own], temperature=_OWN_TEMPERATURE, seed=batch.seed
        )
        for at, thought in zip(own, written, strict=True):
            thoughts[at] = thought
    vectors = learner.behind(batch.examples, thoughts)
    reading, found = learner.reading_loss(vectors, documents, batch)
    writing = learner.writing_loss(batch.examples, seed=batch.seed)
    loss = loss + reading + learner.config.writing * writing
    return loss, {**parts, **found, "writing": writing.item()}


def _readers_of_own(thoughts: Sequence[Sequence[int]], share: float) -> list[int]:
    """Which examples of a batch are read behind their own thoughts: those without one first."""
    return sorted(range(len(thoughts)), key=lambda at: bool(thoughts[at]))[
        : round(share * len(thoughts))
    ]


class Reinforcement:
    """Stage 3: GRPO (arXiv 2402.03300), one update a batch.

    A thought's reward is what it changes in the log-rank of the best answer against no thought.
    Meanwhile the student goes on learning to read, directly and behind what it writes.

    Args:
        learner: Of it, the student as it stands now ranks what thoughts find.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._reward = RewardModel(learner)

    def __call__(self, batch: Batch) -> tuple[Tensor, Parts]:
        """The loss, and what it is made of."""
        learner, config = self._learner, self._learner.config
        examples = np.repeat(batch.examples, config.group)
        thoughts, closed = learner.think(
            examples, temperature=1.0, least=config.least, seed=batch.seed
        )
        gains = self._reward.gains(batch, thoughts)
        rewards = gains.reshape(-1, config.group)
        spread = rewards.std(axis=1, keepdims=True)
        advantages = (rewards - rewards.mean(axis=1, keepdims=True)) / (spread + 1e-4)
        vectors, likely, owners = learner.write_and_read(examples, thoughts, least=config.least)
        weights = torch.from_numpy(advantages.reshape(-1).astype(np.float32)).to(learner.device)
        # A thought that ran out of budget did not choose to close.
        chose = torch.ones_like(likely)
        ends = (
            torch.cumsum(torch.tensor([len(t) + 1 for t in thoughts], device=learner.device), 0) - 1
        )
        chose[ends] = torch.from_numpy(closed.astype(np.float32)).to(learner.device)
        policy = -(weights[owners] * likely * chose).sum() / chose.sum()
        documents = learner.documents(batch.documents)
        direct, _ = learner.reading_loss(learner.direct(batch.examples), documents, batch)
        # One thought of each question: they are drawn alike.
        behind, read = learner.reading_loss(vectors[:: config.group], documents, batch)
        parts = {
            "gain": float(gains.mean()),
            "helped": float((gains > 0).mean()),
            "hurt": float((gains < 0).mean()),
            "closed": float(closed.mean()),
            "length": float(np.mean([len(thought) for thought in thoughts])),
        }
        return policy + config.reading * (direct + behind), {**parts, **read}
