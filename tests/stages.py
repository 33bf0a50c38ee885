"""The progress of one stage of an export, for tests that watch or interrupt it."""

from collections.abc import Iterator
from contextlib import contextmanager

from t1_edge_export.bars import Bars, Progress, silent


def stage(title: str, progress: Progress) -> Bars:
    """Bars of which one is watched.

    Args:
        title: Of the stage.
        progress: What its bar calls.
    """

    @contextmanager
    def bar(opened: str, weights: int) -> Iterator[Progress]:
        yield progress if opened == title else silent

    return bar
