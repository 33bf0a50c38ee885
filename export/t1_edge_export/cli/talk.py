"""The bars of an export, and its talk."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from t1_edge.cli.output import progress, say

if TYPE_CHECKING:
    from t1_edge_export.bars import Bars, Progress
    from t1_edge_export.checkpoint import Checkpoint


def bars_in_bytes(checkpoint: "Checkpoint") -> "Bars":
    """Bars over the bytes of a checkpoint as it stores them.

    Every weight counts as much: in a GGUF of several block formats bytes are an average. A stage
    that ends before its last pass, or leaves out tensors, is shown as whole when it ends.

    Args:
        checkpoint: What is exported, with the contract's tokens.
    """
    from t1_edge_export.decoder import weight_count

    weights, size = weight_count(checkpoint.decoder), checkpoint.stored_bytes

    @contextmanager
    def bar(title: str, passes: int) -> Iterator["Progress"]:
        shown = 0
        done = 0
        with progress(passes * size, title, in_bytes=True) as update:

            def passed(count: int) -> None:
                nonlocal done, shown
                done += count
                before, shown = shown, done * size // weights
                update(shown - before)

            yield passed
            update(passes * size - shown)

    return bar


def timed_say() -> Callable[[str], None]:
    """A `say` that ends each line with the seconds since it was made: what took long shows."""
    began = time.monotonic()
    return lambda text: say(f"{text} (at {time.monotonic() - began:.0f} s)")
