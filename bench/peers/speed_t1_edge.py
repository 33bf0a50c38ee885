"""t1-edge in `peers.speed`: its public encoder, text in and vectors out, nothing cached.

python -m peers.speed_t1_edge BUILD TASKS THREADS ENGINE
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from peers.speed_wire import Tasks, Work
from peers.speed_worker import Float32Array, serve
from t1_edge.encoder import Encoder
from t1_edge.engines.select import EngineChoice
from t1_edge.errors import EngineError


class T1Edge:
    """See `peers.speed_worker.Contestant`. Items are texts.

    Args:
        encoder: Opened on a build whose thoughts do not end by themselves.
        budget: Tokens of a thought.
    """

    def __init__(self, encoder: Encoder, budget: int) -> None:
        self._encoder = encoder
        self._budget = budget

    def prepare(self, work: Work, items: Sequence[str]) -> str:
        """It has no settings; what reads documents is opened, where that is not the engine."""
        document = work in ("passages", "facts")
        info = self._encoder.read_by() if document else self._encoder.info
        return f"{info.library}, {info.device}, {info.threads} threads"

    def run(self, work: Work, items: Sequence[str]) -> Float32Array:
        """Embed documents, or think and embed queries."""
        if work in ("passages", "facts"):
            return self._encoder.embed_documents(items, truncate=True).vectors
        found = self._encoder.encode_queries(items, budget=self._budget)
        written = {len(one.thought_tokens) for one in found}
        if written != {self._budget}:
            raise EngineError(f"thoughts of {written} tokens, and not all of {self._budget}")
        return np.stack([one.vector for one in found])


def main() -> None:
    """Serve."""
    build, file, threads, engine = sys.argv[1:]
    tasks = Tasks.load(Path(file))
    choice = cast(EngineChoice, engine)
    with Encoder.load(build, engine=choice, threads=int(threads), cache=False) as encoder:
        serve(T1Edge(encoder, tasks.budget), lambda work: tasks.of(work).texts)


if __name__ == "__main__":
    main()
