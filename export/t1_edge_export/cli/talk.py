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
    that ends before it dealt with all is shown as whole when it ends.

    Args:
        checkpoint: What is exported, with the contract's tokens.
    """
    from t1_edge_export.decoder import weight_count

    stored, count = checkpoint.stored_bytes, weight_count(checkpoint.decoder)

    @contextmanager
    def bar(title: str, weights: int) -> Iterator["Progress"]:
        total, done, shown = weights * stored // count, 0, 0
        with progress(total, title, in_bytes=True) as update:

            def passed(weights: int) -> None:
                nonlocal done, shown
                done += weights
                before, shown = shown, done * stored // count
                update(shown - before)

            yield passed
            update(total - shown)

    return bar


def timed_say() -> Callable[[str], None]:
    """A `say` that ends each line with the seconds since it was made: what took long shows."""
    began = time.monotonic()
    return lambda text: say(f"{text} (at {time.monotonic() - began:.0f} s)")
