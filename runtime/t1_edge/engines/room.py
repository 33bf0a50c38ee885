"""Whether a batch fits into memory: asked first, since Linux kills who takes more than there is."""

from typing import Final

from t1_edge.build import Decoder
from t1_edge.errors import EngineError
from t1_edge.machine import free_memory

_SPARE: Final = 0.9
"""Of what is free: others take some meanwhile."""


def check_room(decoder: Decoder, rows: int, tokens: int, *, cache_bytes: int) -> None:
    """Whether rows fit into memory, with their KV cache and what the widest layer gives.

    Args:
        decoder: The shape of the model.
        rows: How many run together.
        tokens: Places of each row in the cache.
        cache_bytes: Of one number in the cache.

    Raises:
        EngineError: If they do not; saying how many rows would.
    """
    free = int(_SPARE * free_memory())
    needed = rows * tokens * _token_bytes(decoder, cache_bytes)
    if needed <= free:
        return
    fitting = free * rows // needed
    advice = f"give a batch_size of {fitting}" if fitting else "end other programs, or give less"
    raise EngineError(
        f"{rows} rows of {tokens} tokens need {needed / 1e9:.1f} GB of memory and "
        f"{free / 1e9:.1f} GB are free: {advice}"
    )


def _token_bytes(decoder: Decoder, cache_bytes: int) -> int:
    """Keys and values of every block, and the activations that are alive at once in one."""
    cache = 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * cache_bytes
    attention = (decoder.heads + 2 * decoder.kv_heads) * decoder.head_dim
    activations = 2 * decoder.hidden + max(attention, 3 * decoder.intermediate)
    return cache + 4 * activations
