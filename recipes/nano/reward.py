"""What a thought is worth: how far it lifts the best answer."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from recipes.nano.learner import Learner
from recipes.nano.model import Frozen
from recipes.nano.ranks import best_ranks
from recipes.nano.stream import Batch


class RewardModel:
    """The student as it stands now, kept to rank with: its gains are what stage 3 rewards.

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
        documents = torch.cat([own, self._documents]).T
        known = np.concatenate([batch.documents, self._pool])
        answers = learner.stream.answers(batch.examples, known)
        before = best_ranks((empty @ documents).cpu().numpy(), answers)
        after = best_ranks((thought @ documents).cpu().numpy(), answers.repeat(group, axis=0))
        return np.log(before.repeat(group) / after, dtype=np.float32)
