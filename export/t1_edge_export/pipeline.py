"""Checkpoint to build: one pass over the tensors, every container fed from the same slabs."""

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from t1_edge import __version__
from t1_edge.build import (
    GOLDEN,
    MANIFEST,
    SCHEMA,
    TOKENIZER,
    Build,
    Format,
    Manifest,
    Profile,
    Verification,
    file_entry,
    fingerprint,
)
from t1_edge.contract import Codec, Contract
from t1_edge.engines.select import require
from t1_edge.errors import ExportError, GateError
from t1_edge.tokenization import TextTokenizer
from t1_edge_export.card import CARD, model_card
from t1_edge_export.checkpoint import Checkpoint
from t1_edge_export.containers import Encoding
from t1_edge_export.formats import choose_encodings, open_container, require_writer
from t1_edge_export.gate import golden_rows, measure, misses
from t1_edge_export.gguf_metadata import gguf_metadata
from t1_edge_export.plan import memory_to_write
from t1_edge_export.precision import Budget, choose_eight_bit, find_limit
from t1_edge_export.quantize.quantizer import SEARCH, Quantizer
from t1_edge_export.quantize.sensitivity import by_worth
from t1_edge_export.room import check_memory, free_memory
from t1_edge_export.staging import Staging, staged
from t1_edge_export.vocabulary import with_tokens
from t1_edge_export.weights import write_weights


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
        budget: What the build may take: the linear layers that lose most to 4 bits get 8, as many
            as fit. All of them have 4 if None.
        force: Replace a build that stands at the destination.
        resume: Go on where an export that was interrupted stood.
        allow_drift: Publish a build that misses the gate's bounds, and say so in its manifest.
    """

    name: str
    destination: Path
    contract: Contract
    formats: Sequence[Format] = ("onnx", "gguf")
    profile: Profile = "portable"
    quantizer: Quantizer = SEARCH
    budget: Budget | None = None
    force: bool = False
    resume: bool = False
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
        ExportError: If the destination exists or cannot be written, disk or memory are too small,
            what is to be resumed was another request's, the budget cannot be met, or the profile
            rounds nothing and a calibrated quantizer or a budget is given.
        GateError: If the build misses its bounds; nothing is published then.
        MissingExtraError: If a format's engine, which has to verify it, is not installed.
    """
    if request.profile == "float" and request.quantizer.calibration:
        raise ExportError("the profile float rounds nothing: leave the calibration out")
    for format in request.formats:
        require(format)
        require_writer(format)
    checkpoint = with_tokens(checkpoint, request.contract.added_tokens)
    codec = Codec(request.contract, TextTokenizer(checkpoint.tokenizer))
    check_memory("writing", memory_to_write(checkpoint.decoder), free_memory())
    eight_bit = _eight_bit(checkpoint, request, say)
    with staged(
        request.destination,
        force=request.force,
        resume=request.resume,
        request=_key(checkpoint, request, eight_bit),
        say=say,
    ) as staging:
        directory = staging.directory
        (directory / TOKENIZER).write_text(checkpoint.tokenizer, encoding="utf-8")
        say(f"writing {' and '.join(request.formats)}")
        weights = _write(staging, checkpoint, request, eight_bit, progress)
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
        manifest = _manifest(directory, checkpoint, request, eight_bit, verification, weights)
        (directory / MANIFEST).write_bytes(manifest.to_json())
    return Build(request.destination)


def _eight_bit(
    checkpoint: Checkpoint, request: Request, say: Callable[[str], None]
) -> tuple[str, ...]:
    """The linear layers that get 8 bits within the budget."""
    if request.budget is None:
        return ()
    decoder = checkpoint.decoder
    metadata = _metadata(checkpoint, request, choose_encodings(decoder, request.profile))
    limit = find_limit(request.budget, decoder, request.profile, request.formats, metadata)
    importance = request.quantizer.importance()
    judged = "" if importance else ", by the weights alone"
    say(f"measuring what 4 bits cost each linear layer{judged}")
    order = by_worth(checkpoint, importance)
    return choose_eight_bit(decoder, limit, order)


def _metadata(checkpoint: Checkpoint, request: Request, encodings: Mapping[str, Encoding]) -> bytes:
    """What stands before the tensors of the GGUF, if there is to be one."""
    if "gguf" not in request.formats:
        return b""
    text, source = checkpoint.tokenizer, checkpoint.source
    return gguf_metadata(checkpoint.decoder, encodings, text, request.name, source)


def _write(
    staging: Staging,
    checkpoint: Checkpoint,
    request: Request,
    eight_bit: Sequence[str],
    progress: Callable[[int], None],
) -> str:
    """Write the files of every format; the sha256 of the quantized weights."""
    decoder = checkpoint.decoder
    encodings = choose_encodings(decoder, request.profile, eight_bit)
    metadata = _metadata(checkpoint, request, encodings)
    with ExitStack() as stack:
        containers = [
            open_container(format, staging.directory, decoder, encodings, metadata)
            for format in request.formats
        ]
        for container in containers:
            stack.callback(container.abort)
        weights = write_weights(
            checkpoint, encodings, request.quantizer, containers, staging.journal, progress=progress
        )
        for container in containers:
            container.finish()
    return weights


def _key(checkpoint: Checkpoint, request: Request, eight_bit: Sequence[str]) -> str:
    """Changes with everything that decides the bytes of a build."""
    parts = [
        __version__,
        checkpoint.source.sha256,
        checkpoint.tokenizer,
        msgspec.json.encode(request.contract).decode(),
        request.name,
        request.profile,
        *request.formats,
        request.quantizer.calibration,
        *eight_bit,
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _manifest(
    directory: Path,
    checkpoint: Checkpoint,
    request: Request,
    eight_bit: tuple[str, ...],
    verification: Verification,
    weights: str,
) -> Manifest:
    """Describe the files that are in the directory; the model card is written on the way."""
    decoder = checkpoint.decoder
    entries = {path.name: file_entry(path) for path in sorted(directory.iterdir())}
    tokenizer = entries[TOKENIZER].sha256
    encodings = choose_encodings(decoder, request.profile, eight_bit)
    manifest = Manifest(
        schema=SCHEMA,
        name=request.name,
        profile=request.profile,
        source=checkpoint.source,
        decoder=decoder,
        contract=request.contract,
        formats=tuple(request.formats),
        encodings=dict(Counter(encodings.values())),
        eight_bit=eight_bit,
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
