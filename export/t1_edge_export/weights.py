"""One pass over a checkpoint's tensors, into every container, with a journal of what is whole."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np

from t1_edge.build import Format
from t1_edge_export.bars import Progress, silent
from t1_edge_export.checkpoint import Checkpoint
from t1_edge_export.containers import ContainerWriter, Encoding, Slab
from t1_edge_export.decoder import matrices, tensors
from t1_edge_export.formats import open_container
from t1_edge_export.journal import Journal, Written
from t1_edge_export.quantize.quantizer import Quantizer
from t1_edge_export.slabs import encode

_WEIGHTS_BETWEEN_FLUSHES: Final = 2**29
"""So many weights at most are quantized again after a kill: seconds of work."""


def write_files(
    directory: Path,
    formats: Collection[Format],
    checkpoint: Checkpoint,
    encodings: Mapping[str, Encoding],
    quantizer: Quantizer,
    journal: Journal,
    *,
    metadata: bytes = b"",
    cuda: bool = False,
    progress: Progress = silent,
) -> str:
    """Write the files of every format in one pass; what fails leaves none that is half whole.

    Args:
        directory: Where to.
        formats: Engines to write for.
        checkpoint: The float weights.
        encodings: Block format by tensor name.
        quantizer: How linear layers are rounded.
        journal: See `write_weights`.
        metadata: What stands before the tensors of a GGUF.
        cuda: Write ONNX's graph for CUDA too.
        progress: See `write_weights`.

    Returns:
        See `write_weights`.

    Raises:
        CheckpointError: If a tensor cannot be read, or quantized.
        ExportError: If the disk is full.
    """
    with ExitStack() as stack:
        containers = []
        for format in formats:
            container = open_container(
                format, directory, checkpoint.decoder, encodings, metadata, cuda=cuda
            )
            stack.callback(container.abort)
            containers.append(container)
        found = write_weights(
            checkpoint, encodings, quantizer, containers, journal, progress=progress
        )
        for container in containers:
            container.finish()
    return found


def write_weights(
    checkpoint: Checkpoint,
    encodings: Mapping[str, Encoding],
    quantizer: Quantizer,
    containers: Sequence[ContainerWriter],
    journal: Journal,
    *,
    progress: Progress = silent,
) -> str:
    """Write what the journal does not hold yet.

    Args:
        checkpoint: The float weights.
        encodings: Block format by tensor name.
        quantizer: How linear layers are rounded.
        containers: What takes the slabs.
        journal: Of an earlier attempt, or new; tensors are noted in it once they are on the disk.
        progress: Called with the number of weights that were just written.

    Returns:
        sha256 over all quantized tensors: containers, the size of slabs and interruptions do not
        show in it.
    """
    # Norms are written again: a graph holds them itself.
    held = [spec for spec in matrices(checkpoint.decoder) if spec.name in journal.written]
    for spec in held:
        for container in containers:
            container.skip(spec)
    if held:
        progress(sum(spec.size for spec in held))
    fresh: list[Written] = []
    digest, loose = hashlib.sha256(), 0
    for slab in encode(checkpoint, encodings, quantizer, without={spec.name for spec in held}):
        _add(digest, slab)
        for container in containers:
            container.write(slab)
        progress(slab.size)
        loose += slab.size
        if slab.is_last:
            fresh.append(Written(tensor=slab.spec.name, sha256=digest.hexdigest()))
            digest = hashlib.sha256()
        if loose >= _WEIGHTS_BETWEEN_FLUSHES:
            _note(fresh, containers, journal)
            fresh, loose = [], 0
    _note(fresh, containers, journal)
    lines = [
        f"{spec.name}/{encodings[spec.name]} {journal.written[spec.name]}\n"
        for spec in tensors(checkpoint.decoder)
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _note(
    fresh: Sequence[Written], containers: Sequence[ContainerWriter], journal: Journal
) -> None:
    for container in containers:
        container.flush()
    journal.note(fresh)


def _add(digest: "hashlib._Hash", slab: Slab) -> None:
    """Add a slab row by row, so that neither container nor slab size shows in the hash."""
    parts = [slab.codes] if slab.scales is None else [slab.codes, slab.scales]
    rows = [np.ascontiguousarray(part).reshape(len(part), -1).view(np.uint8) for part in parts]
    digest.update(np.concatenate(rows, axis=1).data)
