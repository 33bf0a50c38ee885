"""What an export tells of its progress: a bar for each stage, over the weights it deals with."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Progress = Callable[[int], None]
"""Called with the number of weights that were just dealt with."""

Bars = Callable[[str, int], AbstractContextManager[Progress]]
"""Opens the bar of a stage: its title, and with how many weights it deals at most."""


def silent(weights: int) -> None:
    """The progress that nobody watches."""


@contextmanager
def no_bars(title: str, weights: int) -> Iterator[Progress]:
    """Bars that nobody watches."""
    yield silent
