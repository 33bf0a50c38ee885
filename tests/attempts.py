"""An export in a process of its own, to be killed."""

from pathlib import Path

from t1_edge_export import weights
from t1_edge_export.checkpoint import open_checkpoint
from t1_edge_export.pipeline import export
from t1_edge_export.request import Request
from tiny import TINY_CONTRACT


def attempt(folder: Path, destination: Path) -> None:
    """Export a tiny checkpoint, going on with what an earlier attempt left.

    Every tensor is brought to the disk by itself, so that there is something to go on with.
    """
    weights._WEIGHTS_BETWEEN_FLUSHES = 1  # type: ignore[misc]
    request = Request(
        name="tiny", destination=destination, contract=TINY_CONTRACT, allow_drift=True, resume=True
    )
    export(open_checkpoint(folder), request)
