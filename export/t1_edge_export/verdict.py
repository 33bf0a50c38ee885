"""Whether a build is published; and if not, where to look."""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from t1_edge.build import Format
from t1_edge.errors import GateError
from t1_edge.verification import Verification
from t1_edge_export.audit import relative_errors
from t1_edge_export.checkpoint import Checkpoint, Weights
from t1_edge_export.gate import Measured, misses

_NAMED: Final = 3
"""Tensors that a miss names."""


def judge(
    found: Measured,
    checkpoint: Checkpoint,
    read: Callable[[Format], Weights],
    say: Callable[[str], None],
    *,
    allow_drift: bool,
) -> Verification:
    """What the manifest says of the gate.

    Args:
        found: What the gate measured.
        checkpoint: The float weights.
        read: Reads a format's weights back from its files; called for a miss alone.
        say: Called with a line on what is missed where that is allowed, and before a long search.
        allow_drift: Publish a build that misses its bounds.

    Raises:
        GateError: If it misses them; naming the texts that are furthest from the reference, and the
            tensors that lost most to rounding.
    """
    missed = misses(found.verification)
    what = "; ".join(miss.sentence for miss in missed)
    if missed and not allow_drift:
        say(f"the build misses its bounds ({what}); looking for the tensors")
        formats = {miss.format for miss in missed} - {None} or found.worst_texts.keys()
        where = [
            f"furthest from the reference in {format} are the texts {_quoted(texts)} and the "
            f"tensors {_furthest(checkpoint, read(format))}"
            for format, texts in found.worst_texts.items()
            if format in formats
        ]
        raise GateError(
            f"not published, the build misses its bounds: {'; '.join([what, *where])}; "
            "--allow-drift publishes it all the same"
        )
    if missed:
        say(f"published all the same, the build misses its bounds: {what}")
    return msgspec.structs.replace(found.verification, drift_allowed=bool(missed))


def _furthest(checkpoint: Checkpoint, written: Weights) -> str:
    errors = relative_errors(checkpoint, written)
    worst = sorted(errors, key=errors.__getitem__, reverse=True)[:_NAMED]
    return ", ".join(f"{name} ({errors[name]:.1%} off)" for name in worst)


def _quoted(texts: Sequence[str]) -> str:
    return ", ".join(map(repr, texts))
