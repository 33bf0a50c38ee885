"""Exports in processes of their own, to be killed, or to be at it while others try."""

from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path

from stages import stage
from t1_edge_export import weights
from t1_edge_export.checkpoint import Checkpoint, open_checkpoint
from t1_edge_export.pipeline import export
from t1_edge_export.precision import Budget
from t1_edge_export.quantize.calibration import read_calibration
from t1_edge_export.request import Request
from t1_edge_export.vocabulary import with_tokens
from tiny import TINY_CONTRACT


def asked(checkpoint: Checkpoint, destination: Path, *, fitted: bool) -> Request:
    """What an attempt asks for.

    Args:
        checkpoint: A tiny one.
        destination: Where to.
        fitted: With statistics over the texts that ship, bits to spend by them, and the graph for
            documents.
    """
    request = Request(
        name="tiny", destination=destination, contract=TINY_CONTRACT, allow_drift=True, resume=True
    )
    if not fitted:
        return request
    whole = with_tokens(checkpoint, TINY_CONTRACT)
    return replace(
        request,
        calibration=read_calibration("search", "default", whole, TINY_CONTRACT),
        budget=Budget(bits=6),
        documents=True,
    )


def attempt(folder: Path, destination: Path, fitted: bool) -> None:
    """Export a tiny checkpoint, going on with what an earlier attempt left.

    Every tensor is brought to the disk by itself, so that there is something to go on with.
    """
    weights._WEIGHTS_BETWEEN_FLUSHES = 1  # type: ignore[misc]
    checkpoint = open_checkpoint(folder)
    export(checkpoint, asked(checkpoint, destination, fitted=fitted))


def stand_still(folder: Path, destination: Path, collecting: Event, go_on: Event) -> None:
    """Export a tiny checkpoint, and wait in the midst of its statistics.

    Args:
        folder: The checkpoint.
        destination: Where to.
        collecting: Set once they are being collected.
        go_on: Waited for there.
    """

    def wait(count: int) -> None:
        collecting.set()
        go_on.wait()

    checkpoint = open_checkpoint(folder)
    request = asked(checkpoint, destination, fitted=True)
    export(checkpoint, request, bars=stage("collecting", wait))
