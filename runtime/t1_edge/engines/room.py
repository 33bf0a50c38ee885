"""Whether a batch fits into memory, and what is said where it does not.

It is asked first, since Linux kills who takes more than there is. Allocations fail where memory is
limited otherwise, and on a GPU.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from t1_edge.build import Decoder
from t1_edge.engines.rows import Rows
from t1_edge.errors import EngineError
from t1_edge.machine import free_memory

MOST_SCORES: Final = 1 << 27
"""Bytes of a row's attention scores up to which a graph for documents holds them all at once."""

_SPARE: Final = 0.9
"""Of what is free: others take some meanwhile."""


def score_bytes(decoder: Decoder, tokens: int) -> int:
    """Of one row's attention scores in one block, float32 [heads, tokens, tokens]."""
    return 4 * decoder.heads * tokens**2


def check_room(
    decoder: Decoder, rows: int, tokens: int, *, cache_bytes: int, documents: bool = False
) -> None:
    """Whether rows fit into memory, with their KV cache and what the widest layer gives.

    Args:
        decoder: The shape of the model.
        rows: How many run together.
        tokens: Places of each row in the cache.
        cache_bytes: Of one number in the cache.
        documents: Whether a graph for documents reads them, which may hold attention scores.

    Raises:
        EngineError: If they do not; saying how many rows would.
    """
    free = int(_SPARE * free_memory())
    needed = rows * tokens * _token_bytes(decoder, cache_bytes)
    scores = score_bytes(decoder, tokens)
    if documents and scores <= MOST_SCORES:  # a graph for longer rows attends to them by tiles
        needed += rows * scores
    if needed <= free:
        return
    raise EngineError(
        f"{rows} rows of {tokens} tokens need {needed / 1e9:.1f} GB of memory and "
        f"{free / 1e9:.1f} GB are free: {_advice(free * rows // needed)}"
    )


@contextmanager
def memory_for(rows: Rows) -> Iterator[None]:
    """While something is done with rows, say of a MemoryError how many might fit: half of them.

    Raises:
        EngineError: In the place of a MemoryError.
    """
    try:
        yield
    except MemoryError as e:
        _let_go(e)
        why = f" ({e})" if str(e) else ""
        raise EngineError(
            f"{len(rows)} rows of {rows.longest} tokens do not fit into memory{why}: "
            f"{_advice(len(rows) // 2)}"
        ) from e


def _let_go(error: BaseException | None) -> None:
    """Empty the calls that failed: else who handles the error holds what they had allocated."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _advice(fitting: int) -> str:
    """What to do where rows do not fit and so many might."""
    less = f"give a batch_size of {fitting}" if fitting else "give shorter texts"
    return f"end other programs, or {less}"


def _token_bytes(decoder: Decoder, cache_bytes: int) -> int:
    """Keys and values of every block, and the activations that are alive at once in one."""
    cache = 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * cache_bytes
    attention = (decoder.heads + 2 * decoder.kv_heads) * decoder.head_dim
    activations = 2 * decoder.hidden + max(attention, 3 * decoder.intermediate)
    return cache + 4 * activations
