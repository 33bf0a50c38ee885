"""Whether a build is published; and if not, where to look."""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from t1_edge.errors import GateError
from t1_edge.verification import Verification
from t1_edge_export.audit import relative_errors
from t1_edge_export.checkpoint import Checkpoint, Weights
from t1_edge_export.gate import Measured, Verified, misses

_NAMED: Final = 3
"""Tensors that a miss names."""


def judge(
    found: Measured,
    checkpoint: Checkpoint,
    read: Callable[[Verified], Weights],
    say: Callable[[str], None],
    *,
    allow_drift: bool,
) -> Verification:
    """What the manifest says of the gate.

    Args:
        found: What the gate measured.
        checkpoint: The float weights.
        read: Reads the weights of what was run back from its files; called for a miss alone.
        say: Called with a line on what is missed, and by which texts, where that is allowed, and
            before a long search.
        allow_drift: Publish a build that misses its bounds.

    Raises:
        GateError: If it misses them; naming the texts that are furthest from the reference, and the
            tensors that lost most to rounding.
    """
    missed = misses(found.verification)
    if not missed:
        return found.verification
    what = "; ".join(miss.sentence for miss in missed)
    blamed = {miss.format for miss in missed} - {None} or found.verification.engines.keys()
    worst = {name: texts for name, texts in found.worst_texts.items() if name in blamed}
    if allow_drift:
        where = [f"in {name} are the texts {_quoted(texts)}" for name, texts in worst.items()]
        say(
            f"published all the same, the build misses its bounds: {what}; furthest from the "
            f"reference {', '.join(where)}"
        )
        return msgspec.structs.replace(found.verification, drift_allowed=True)
    say(f"the build misses its bounds ({what}); looking for the tensors")
    where = [
        f"furthest from the reference in {name} are the texts {_quoted(texts)} and the "
        f"tensors {_furthest(checkpoint, read(name))}"
        for name, texts in worst.items()
    ]
    raise GateError(
        f"not published, the build misses its bounds: {'; '.join([what, *where])}; "
        "--allow-drift publishes it all the same"
    )


def _furthest(checkpoint: Checkpoint, written: Weights) -> str:
    errors = relative_errors(checkpoint, written)
    worst = sorted(errors, key=errors.__getitem__, reverse=True)[:_NAMED]
    return ", ".join(f"{name} ({errors[name]:.1%} off)" for name in worst)


def _quoted(texts: Sequence[str]) -> str:
    return ", ".join(map(repr, texts))
