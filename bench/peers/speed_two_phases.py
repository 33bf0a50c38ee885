"""llama.cpp in `peers.speed` at its best: the low-level API, in two phases.

    python -m peers.speed_two_phases MODEL TASKS THREADS

With embeddings on, llama.cpp computes the logits of every token. So all of a batch but the last
tokens are decoded with embeddings off; then `<emb_token>` of every row with embeddings on. It runs
in llama-cpp-python's environment.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from peers.speed_wire import Tasks, Work
from peers.speed_worker import Float32Array, batches, best, rows_of, sample, serve, unit

_MOST_ROWS: Final = 128
_STEP: Final = 256
"""Cells of a row's own cache come in multiples of these."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is tried.

    Attributes:
        threads: CPU threads.
        tokens: Most of a batch.
        micro: Tokens that run through the layers together (n_ubatch).
        flash: Flash attention.
        unified: One cache for all rows, in place of one each.
        prefix: What all rows begin with is computed once, as a unified cache allows.
    """

    threads: int
    tokens: int = 1024
    micro: int = 512
    flash: bool = True
    unified: bool = True
    prefix: bool = False


class _Entry(NamedTuple):
    """A token of a decode call; `output` if its hidden state is wanted."""

    token: int
    position: int
    row: int
    output: bool


class TwoPhases:
    """See `peers.speed_worker.Contestant`. Items are whole rows of documents.

    Args:
        model: A GGUF.
        threads: CPU threads, if fewer are not faster.
    """

    def __init__(self, model: str, threads: int) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        self._threads = threads
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model: Any = llama_cpp.llama_model_load_from_file(model.encode(), parameters)
        self._hidden = llama_cpp.llama_model_n_embd(self._model)
        self._contexts: dict[Work, _Context] = {}

    def prepare(self, work: Work, items: Sequence[Sequence[int]]) -> str:
        """Find the best settings, and keep a context of them."""
        some = sample(items)
        axes = {
            "tokens": (512, 2048, 4096),
            "micro": (256, 1024, 2048),
            "unified": (False,),
            "prefix": (True,),
            "flash": (False,),
            "threads": (max(1, self._threads // 2),),
        }
        first = Settings(threads=self._threads)
        self._open(work, items, first)
        chosen = best(first, axes, lambda settings: self._tried(work, items, settings).embed(some))
        self._open(work, items, chosen)
        return str(chosen)

    def run(self, work: Work, items: Sequence[Sequence[int]]) -> Float32Array:
        """Embed documents."""
        return self._contexts[work].embed(items)

    def _tried(self, work: Work, items: Sequence[Sequence[int]], settings: Settings) -> "_Context":
        """A context of these settings; making it takes little beside what it runs."""
        if self._contexts[work].settings != settings:
            self._open(work, items, settings)
        return self._contexts[work]

    def _open(self, work: Work, items: Sequence[Sequence[int]], settings: Settings) -> None:
        if work in self._contexts:
            self._contexts.pop(work).close()
        self._contexts[work] = _Context(self._api, self._model, self._hidden, items, settings)


class _Context:
    """A context of llama.cpp, and how rows are run through it.

    Args:
        api: llama_cpp.
        model: Its weights.
        hidden: Dimensions of a vector.
        items: All rows that will come: the cache is made for them.
        settings: What to make it with.
    """

    def __init__(
        self,
        api: Any,
        model: Any,
        hidden: int,
        items: Sequence[Sequence[int]],
        settings: Settings,
    ) -> None:
        self.settings = settings
        self._api = api
        self._hidden = hidden
        self._prefix = _shared(items) if settings.prefix and settings.unified else []
        lengths = [len(row) for row in items]
        self._most = min(_MOST_ROWS, max(1, settings.tokens // min(lengths)))
        size = max(settings.tokens, *lengths)
        cells = size + len(self._prefix)
        if not settings.unified:
            cells = (self._most + 1) * -(-max(lengths) // _STEP) * _STEP
        self._context: Any = api.llama_init_from_model(model, self._parameters(cells, size))
        self._batch: Any = api.llama_batch_init(size, 0, 1)
        self._memory: Any = api.llama_get_memory(self._context)
        if self._prefix:
            self._decode(_Entry(token, at, 0, False) for at, token in enumerate(self._prefix))
            for row in range(1, self._most + 1):
                api.llama_memory_seq_cp(self._memory, 0, row, 0, len(self._prefix))

    def embed(self, rows: Sequence[Sequence[int]]) -> Float32Array:
        """Unit vectors, float32 [rows, hidden]."""
        vectors = np.empty((len(rows), self._hidden), np.float32)
        held = len(self._prefix)
        for batch in batches(rows, self.settings.tokens, most=self._most, padded=False):
            self._decode(
                _Entry(token, at, row, False)
                for row, which in enumerate(batch, 1)
                for at, token in enumerate(rows[which][:-1])
                if at >= held
            )
            self._api.llama_set_embeddings(self._context, True)
            ends = [(rows[which][-1], len(rows[which]) - 1) for which in batch]
            self._decode(_Entry(*end, row, True) for row, end in enumerate(ends, 1))
            for at, which in enumerate(batch):
                found = self._api.llama_get_embeddings_ith(self._context, at)
                vectors[which] = np.ctypeslib.as_array(found, (self._hidden,))
            self._api.llama_set_embeddings(self._context, False)
            self._forget(len(batch))
        return unit(vectors)

    def close(self) -> None:
        """Free the cache."""
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)

    def _parameters(self, cells: int, size: int) -> Any:
        parameters, settings = self._api.llama_context_default_params(), self.settings
        parameters.n_ctx, parameters.n_batch = cells, size
        parameters.n_ubatch = min(settings.micro, size)
        parameters.n_seq_max = self._most + 1
        parameters.n_outputs_max = self._most + 1
        parameters.n_threads = parameters.n_threads_batch = settings.threads
        parameters.kv_unified = settings.unified
        parameters.no_perf = True
        kinds = (
            self._api.LLAMA_FLASH_ATTN_TYPE_DISABLED,
            self._api.LLAMA_FLASH_ATTN_TYPE_ENABLED,
        )
        parameters.flash_attn_type = kinds[settings.flash]
        return parameters

    def _decode(self, entries: Iterable[_Entry]) -> None:
        batch, count = self._batch, 0
        for index, entry in enumerate(entries):
            batch.token[index] = entry.token
            batch.pos[index] = entry.position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = entry.row
            batch.logits[index] = entry.output
            count = index + 1
        batch.n_tokens = count
        status = self._api.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode of {count} tokens gave {status}")

    def _forget(self, rows: int) -> None:
        """Empty the cache, but for the prefix, which the next rows have too."""
        for row in range(1, rows + 1):
            self._api.llama_memory_seq_rm(self._memory, row, len(self._prefix), -1)


def _shared(rows: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all rows begin with; each keeps two of its own."""
    shortest = min(len(row) for row in rows) - 2
    for at in range(shortest):
        if any(row[at] != rows[0][at] for row in rows):
            return list(rows[0][:at])
    return list(rows[0][:shortest])


def main() -> None:
    """Serve."""
    model, file, threads = sys.argv[1:]
    serve(TwoPhases(model, int(threads)), rows_of(Tasks.load(Path(file))))


if __name__ == "__main__":
    main()
