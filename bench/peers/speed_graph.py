"""ONNX Runtime over onnxruntime-genai's graph in `peers.speed`, as well as its inputs allow.

    python -m peers.speed_graph MODEL TASKS THREADS

Rows of like length run together, padded on the right. The graph has no head, which would compute
logits of every token. It runs in the builder's environment.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from peers.speed_wire import Tasks, Work
from peers.speed_worker import Float32Array, batches, best, rows_of, sample, serve, unit

_MOST_ROWS: Final = 512


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is tried.

    Attributes:
        threads: CPU threads.
        tokens: Most padded tokens of a batch.
    """

    threads: int
    tokens: int = 1024


class Graph:
    """See `peers.speed_worker.Contestant`. Items are whole rows of documents.

    Args:
        model: The builder's graph; its genai_config.json lies beside it.
        threads: CPU threads, if fewer are not faster.
    """

    def __init__(self, model: str, threads: int) -> None:
        self._model = model
        config = json.loads(Path(model).with_name("genai_config.json").read_text())
        self._width: int = config["model"]["decoder"]["head_size"]
        self._threads = threads
        self._opened = 0
        self._session: Any = None
        self._settings: dict[Work, Settings] = {}

    def prepare(self, work: Work, items: Sequence[Sequence[int]]) -> str:
        """Find the best batch."""
        some = sample(items)
        axes = {
            "tokens": (256, 512, 2048, 4096),
            "threads": (self._threads, max(1, self._threads // 2)),
        }
        first = Settings(threads=self._threads)
        self._settings[work] = best(first, axes, lambda settings: self._embed(some, settings))
        self._open(self._settings[work].threads)
        return str(self._settings[work])

    def run(self, work: Work, items: Sequence[Sequence[int]]) -> Float32Array:
        """Embed documents."""
        return self._embed(items, self._settings[work])

    def _embed(self, rows: Sequence[Sequence[int]], settings: Settings) -> Float32Array:
        self._open(settings.threads)
        vectors: list[Float32Array] = [np.empty(0, np.float32)] * len(rows)
        for batch in batches(rows, settings.tokens, most=_MOST_ROWS, padded=True):
            for at, vector in zip(batch, self._pass([rows[at] for at in batch]), strict=True):
                vectors[at] = vector
        return unit(np.stack(vectors))

    def _pass(self, rows: Sequence[Sequence[int]]) -> Float32Array:
        """Hidden states of the rows' last tokens, float32 [rows, hidden]."""
        lengths = np.array([len(row) for row in rows])
        ids = np.zeros((len(rows), lengths.max()), np.int64)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = row
        mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
        given = {"input_ids": ids, "attention_mask": mask}
        for entry in self._session.get_inputs():
            if entry.name not in given:
                heads = entry.shape[1]
                given[entry.name] = np.empty((len(rows), heads, 0, self._width), np.float32)
        [states] = self._session.run(["hidden_states"], given)
        return np.asarray(states[np.arange(len(rows)), lengths - 1], np.float32)

    def _open(self, threads: int) -> None:
        if threads == self._opened:
            return
        from onnxruntime import InferenceSession, SessionOptions

        options = SessionOptions()
        options.intra_op_num_threads = self._opened = threads
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self._session = InferenceSession(self._model, options, providers=providers)


def main() -> None:
    """Serve."""
    model, file, threads = sys.argv[1:]
    serve(Graph(model, int(threads)), rows_of(Tasks.load(Path(file))))


if __name__ == "__main__":
    main()
