"""Checkpoint to build: one pass over the tensors, every container fed from the same slabs."""

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from t1_edge import __version__
from t1_edge.build import (
    GOLDEN,
    MANIFEST,
    SCHEMA,
    TOKENIZER,
    Build,
    Decoder,
    Format,
    Manifest,
    Profile,
    Verification,
    file_entry,
    fingerprint,
)
from t1_edge.contract import Codec, Contract
from t1_edge.engines.select import require
from t1_edge.errors import CheckpointError, ExportError, GateError, MissingExtraError
from t1_edge.tokenization import TextTokenizer
from t1_edge_export.card import CARD, model_card
from t1_edge_export.checkpoint import SLAB_ROWS, Checkpoint
from t1_edge_export.containers import BLOCK, ContainerWriter, Encoding, Slab
from t1_edge_export.decoder import Role, TensorSpec, tensors
from t1_edge_export.gate import golden_rows, measure, misses
from t1_edge_export.quantize.blocks import quantize_q8_0
from t1_edge_export.quantize.quantizer import SEARCH, Quantizer
from t1_edge_export.staging import staged
from t1_edge_export.vocabulary import with_tokens

Float32Array = NDArray[np.float32]

_ENCODINGS: Final[Mapping[Profile, Mapping[Role, Encoding]]] = {
    "portable": {"embedding": "q8_0", "linear": "q4_0", "norm": "f32", "head": "q8_0"},
    "float": {"embedding": "f32", "linear": "f32", "norm": "f32", "head": "f32"},
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to export.

    Attributes:
        name: Name of the build.
        destination: The directory to publish.
        contract: How text becomes tokens and a vector.
        formats: Engines to write for.
        profile: How to quantize.
        quantizer: How `portable` rounds the linear layers; a new one for each export.
        force: Replace a build that stands at the destination.
        allow_drift: Publish a build that misses the gate's bounds, and say so in its manifest.
    """

    name: str
    destination: Path
    contract: Contract
    formats: Sequence[Format] = ("onnx", "gguf")
    profile: Profile = "portable"
    quantizer: Quantizer = SEARCH
    force: bool = False
    allow_drift: bool = False


def export(
    checkpoint: Checkpoint,
    request: Request,
    *,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int], None] = lambda weights: None,
) -> Build:
    """Write, verify and publish a build.

    Args:
        checkpoint: The float weights.
        request: What to make of them.
        say: Called with a line of talk at each step.
        progress: Called with the number of weights that were just written.

    Returns:
        The published build.

    Raises:
        CheckpointError: If a tensor cannot be read, or quantized.
        ExportError: If the destination exists or cannot be written, or the profile rounds nothing
            and a calibrated quantizer is given.
        GateError: If the build misses its bounds; nothing is published then.
        MissingExtraError: If a format's engine, which has to verify it, is not installed.
    """
    if request.profile == "float" and request.quantizer.calibration:
        raise ExportError("the profile float rounds nothing: leave the calibration out")
    for format in request.formats:
        require(format)
        _require_writer(format)
    checkpoint = with_tokens(checkpoint, request.contract.added_tokens)
    codec = Codec(request.contract, TextTokenizer(checkpoint.tokenizer))
    with staged(request.destination, force=request.force) as directory:
        (directory / TOKENIZER).write_text(checkpoint.tokenizer, encoding="utf-8")
        say(f"writing {' and '.join(request.formats)}")
        weights = _write_weights(directory, checkpoint, request, progress)
        say("asking the float reference for golden vectors")
        golden = golden_rows(checkpoint, codec)
        golden.save(directory / GOLDEN)
        say("verifying the files that were written")
        figures = measure(
            directory,
            request.formats,
            checkpoint.decoder,
            checkpoint.tokenizer,
            golden,
            request.profile,
        )
        verification = _enforce(figures, request.allow_drift)
        manifest = _manifest(directory, checkpoint, request, verification, weights)
        (directory / MANIFEST).write_bytes(manifest.to_json())
    return Build(request.destination)


def weight_count(decoder: Decoder) -> int:
    """How many weights a decoder has; what `progress` adds up to."""
    return sum(int(np.prod(spec.shape)) for spec in tensors(decoder))


def _write_weights(
    directory: Path, checkpoint: Checkpoint, request: Request, progress: Callable[[int], None]
) -> str:
    """One pass over the checkpoint into every container; the sha256 of the quantized weights."""
    encodings = _choose_encodings(checkpoint.decoder, request.profile)
    digest = hashlib.sha256()
    with ExitStack() as stack:
        containers = [
            _container(format, directory, checkpoint, request.name, encodings)
            for format in request.formats
        ]
        for container in containers:
            stack.callback(container.abort)
        for slab in _slabs(checkpoint, encodings, request.quantizer):
            _digest(digest, slab)
            for container in containers:
                container.write(slab)
            progress(slab.codes.size)
        for container in containers:
            container.finish()
    return digest.hexdigest()


def _choose_encodings(decoder: Decoder, profile: Profile) -> dict[str, Encoding]:
    encodings = {spec.name: _ENCODINGS[profile][spec.role] for spec in tensors(decoder)}
    for spec in tensors(decoder):
        if encodings[spec.name] != "f32" and spec.shape[-1] % BLOCK:
            raise CheckpointError(
                f"{spec.name} is {spec.shape[-1]} wide, which blocks of {BLOCK} do not divide; "
                "export it with --profile float"
            )
    return encodings


def _require_writer(format: Format) -> None:
    """Each container is written with the help of the package that has its format's name."""
    if find_spec(format) is None:
        raise MissingExtraError(format, "export")


def _container(
    format: Format,
    directory: Path,
    checkpoint: Checkpoint,
    name: str,
    encodings: Mapping[str, Encoding],
) -> ContainerWriter:
    if format == "onnx":
        from t1_edge_export.onnx_writer import OnnxContainer

        return OnnxContainer(directory, checkpoint.decoder, encodings)
    from t1_edge_export.gguf_writer import GGUFContainer

    return GGUFContainer(
        directory, checkpoint.decoder, checkpoint.tokenizer, name, encodings, checkpoint.source
    )


def _slabs(
    checkpoint: Checkpoint, encodings: Mapping[str, Encoding], quantizer: Quantizer
) -> Iterator[Slab]:
    for spec in tensors(checkpoint.decoder):
        rows = spec.shape[0]
        step = SLAB_ROWS if spec.role in ("embedding", "head") else rows
        for start in range(0, rows, step):
            weights = checkpoint.rows(spec.name, start, min(start + step, rows))
            yield _encode(weights, spec, encodings[spec.name], start, quantizer)


def _encode(
    weights: Float32Array,
    spec: TensorSpec,
    encoding: Encoding,
    start: int,
    quantizer: Quantizer,
) -> Slab:
    if encoding == "f32":
        return Slab(spec=spec, encoding=encoding, start=start, codes=weights)
    if encoding == "q4_0":
        codes, scales = quantizer.q4_0(spec, weights)
    else:
        codes, scales = quantize_q8_0(weights)
    if not np.isfinite(scales).all():
        raise CheckpointError(f"{spec.name} holds weights too large for float16 scales")
    return Slab(spec=spec, encoding=encoding, start=start, codes=codes, scales=scales)


def _digest(digest: "hashlib._Hash", slab: Slab) -> None:
    """Add a slab row by row, so that neither container nor slab size shows in the hash."""
    if slab.start == 0:
        digest.update(f"{slab.spec.name}/{slab.encoding}".encode())
    parts = [slab.codes] if slab.scales is None else [slab.codes, slab.scales]
    rows = [np.ascontiguousarray(part).reshape(len(part), -1).view(np.uint8) for part in parts]
    digest.update(np.concatenate(rows, axis=1).data)


def _manifest(
    directory: Path,
    checkpoint: Checkpoint,
    request: Request,
    verification: Verification,
    weights: str,
) -> Manifest:
    """Describe the files that are in the directory; the model card is written on the way."""
    decoder = checkpoint.decoder
    entries = {path.name: file_entry(path) for path in sorted(directory.iterdir())}
    tokenizer = entries[TOKENIZER].sha256
    encodings = _choose_encodings(decoder, request.profile)
    manifest = Manifest(
        schema=SCHEMA,
        name=request.name,
        profile=request.profile,
        source=checkpoint.source,
        decoder=decoder,
        contract=request.contract,
        formats=tuple(request.formats),
        encodings=dict(Counter(encodings.values())),
        calibration=request.quantizer.calibration,
        files=entries,
        fingerprint=fingerprint(weights, tokenizer, request.contract, decoder),
        verification=verification,
        tools=_tools(),
    )
    (directory / CARD).write_text(model_card(manifest), encoding="utf-8")
    return msgspec.structs.replace(manifest, files=entries | {CARD: file_entry(directory / CARD)})


def _enforce(verification: Verification, allow_drift: bool) -> Verification:
    found = misses(verification)
    if found and not allow_drift:
        raise GateError(
            f"not published, the build misses its bounds: {'; '.join(found)}; "
            "--allow-drift publishes it all the same"
        )
    return msgspec.structs.replace(verification, drift_allowed=bool(found))


def _tools() -> dict[str, str]:
    found = {"t1-edge": __version__, "python": sys.version.split()[0]}
    for package in ("numpy", "onnx", "gguf", "onnxruntime", "llama-cpp-python"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
