"""The bar of an export, and its talk."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from t1_edge.cli.output import progress, say

if TYPE_CHECKING:
    from t1_edge_export.checkpoint import Checkpoint


@contextmanager
def quantizing(checkpoint: "Checkpoint") -> Iterator[Callable[[int], None]]:
    """A bar over the bytes of a checkpoint as it stores them.

    Every weight counts as much: in a GGUF of several block formats bytes are an average.

    Args:
        checkpoint: What is exported, with the contract's tokens.

    Yields:
        A function to call with the number of weights that were just written.
    """
    from t1_edge_export.decoder import weight_count

    weights, size = weight_count(checkpoint.decoder), checkpoint.stored_bytes
    done = 0
    with progress(size, "quantizing", in_bytes=True) as update:

        def written(count: int) -> None:
            nonlocal done
            before, done = done, done + count
            update(done * size // weights - before * size // weights)

        yield written


def timed_say() -> Callable[[str], None]:
    """A `say` that ends each line with the seconds since it was made: what took long shows."""
    began = time.monotonic()
    return lambda text: say(f"{text} (at {time.monotonic() - began:.0f} s)")
