"""Fixtures of the export room."""

from collections.abc import Callable

import pytest

from t1_edge_export.checkpoint import Checkpoint, open_checkpoint
from tiny import Tiny


@pytest.fixture
def checkpoint(tiny: Callable[..., Tiny]) -> Checkpoint:
    return open_checkpoint(tiny("llama").folder)
