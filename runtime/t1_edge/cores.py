"""The cores of this process, which encoders take turns on: engines that spin together crawl."""

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from t1_edge.machine import usable_cores


class Cores:
    """Cores that are held for a while, first come, first served.

    Args:
        total: How many there are.
    """

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Wait until so many are free, and keep them from others.

        Args:
            count: How many; who asks for more than there are gets all.
        """
        count, held = min(count, self._total), 0
        ticket = object()
        try:
            with self._changed:
                self._waiting.append(ticket)
                try:
                    self._changed.wait_for(
                        lambda: self._waiting[0] is ticket and self._free >= count
                    )
                    self._free -= count
                    held = count
                finally:
                    self._waiting.remove(ticket)
                    self._changed.notify_all()
            yield
        finally:  # whenever an interruption comes, what is held is given back
            with self._changed:
                self._free += held
                self._changed.notify_all()


@cache
def process_cores() -> Cores:
    """Those of this process, which all its encoders share."""
    return Cores(usable_cores())


if hasattr(os, "register_at_fork"):  # what was held at a fork, nobody in the child gives back
    os.register_at_fork(after_in_child=process_cores.cache_clear)
