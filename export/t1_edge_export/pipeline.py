"""Checkpoint to build: one pass over the tensors, every container fed from the same slabs."""

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from t1_edge import __version__
from t1_edge.build import (
    DOCUMENTS_WEIGHTS,
    GOLDEN,
    MANIFEST,
    SCHEMA,
    TOKENIZER,
    Build,
    Manifest,
    file_entry,
    fingerprint,
)
from t1_edge.contract import Codec
from t1_edge.tokenization import TextTokenizer
from t1_edge.verification import Verification
from t1_edge_export.bars import Bars, no_bars
from t1_edge_export.card import CARD, model_card
from t1_edge_export.checkpoint import Checkpoint, Weights
from t1_edge_export.containers import Encoding
from t1_edge_export.decoder import linear_weight_count, weight_count
from t1_edge_export.formats import read_back
from t1_edge_export.gate import Verified, measure
from t1_edge_export.journal import Asked
from t1_edge_export.onnx_documents import write_documents
from t1_edge_export.onnx_reader import DocumentsWeights
from t1_edge_export.plan import check_room, make_plan
from t1_edge_export.precision import choose_eight_bit, eight_bit_layers
from t1_edge_export.quantize.quantizer import Quantizer
from t1_edge_export.quantize.sensitivity import by_worth
from t1_edge_export.quantize.smooth_quant import smooth
from t1_edge_export.reference_engine import ReferenceEngine
from t1_edge_export.request import Request, check_request
from t1_edge_export.staging import Staging, claimed, staged
from t1_edge_export.trial import BUDGETS, Answers, Trial, answer_own, golden, set_trial
from t1_edge_export.verdict import judge
from t1_edge_export.vocabulary import with_tokens
from t1_edge_export.weights import write_files

Float32Array = NDArray[np.float32]


def export(
    checkpoint: Checkpoint,
    request: Request,
    *,
    say: Callable[[str], None] = lambda text: None,
    bars: Bars = no_bars,
) -> Build:
    """Write, verify and publish a build.

    Args:
        checkpoint: The float weights.
        request: What to make of them.
        say: Called with a line of talk at each step.
        bars: Shows how far the longer steps are.

    Returns:
        The published build.

    Raises:
        CheckpointError: If a tensor cannot be read, or quantized.
        ExportError: If the destination exists or cannot be written, disk or memory are too small,
            what is to be resumed was another request's, the budget cannot be met, the profile
            rounds nothing and a calibrated quantizer or a budget is given, it is native and two
            formats or what its GGUF has no use for are, or there are no weights for a graph for
            CUDA or documents.
        EngineError: If an engine cannot run what was written.
        GateError: If the build misses its bounds; nothing is published then.
        KilledError: If an engine's process is killed; `resume` goes on with what was written.
        MissingExtraError: If a format's engine, which has to verify it, is not installed.
    """
    checkpoint = with_tokens(checkpoint, request.contract)
    check_request(checkpoint, request, bars=bars)
    check_room(
        make_plan(checkpoint, request),
        resumed=request.resume is not False,
        ignore_engine_memory=request.ignore_engine_memory,
    )
    with claimed(request.destination, force=request.force) as claim:
        quantizer = request.calibration.fit(checkpoint, say=say, bars=bars)
        options = request.digest(checkpoint, bars)
        asked = Asked(options=options, calibration=quantizer.calibration)
        with staged(claim, resume=request.resume, asked=asked, say=say) as staging:
            _write(staging, checkpoint, request, quantizer, say, bars)
    return Build(request.destination)


def _write(
    staging: Staging,
    checkpoint: Checkpoint,
    request: Request,
    quantizer: Quantizer,
    say: Callable[[str], None],
    bars: Bars,
) -> None:
    """Fill the staging directory with a build that the gate lets pass."""
    codec = Codec(request.contract, TextTokenizer(checkpoint.tokenizer))
    directory = staging.directory
    (directory / TOKENIZER).write_text(checkpoint.tokenizer, encoding="utf-8")
    importance: Mapping[str, Float32Array] = {}
    if request.budget or request.documents:
        importance = quantizer.importance()
    smoothed = quantizer.smoothing.applied(checkpoint)
    encodings = _encodings(smoothed, request, importance, say, bars)
    say(f"writing {' and '.join(request.formats)}")
    with bars("quantizing", weight_count(checkpoint.decoder)) as progress:
        weights = write_files(
            directory,
            request.formats,
            smoothed,
            encodings,
            quantizer,
            staging.journal,
            metadata=request.metadata(smoothed, encodings),
            cuda=request.cuda,
            progress=progress,
        )
    if request.documents:
        plainly = "" if importance else ", whose channels nothing evens out: no statistics"
        say(f"writing what reads documents{plainly}")
        with bars("writing", 2 * linear_weight_count(checkpoint.decoder)) as progress:
            write_documents(
                directory,
                smoothed,
                encodings,
                importance,
                longest=request.contract.max_document_tokens,
                progress=progress,
            )
    say("asking the float reference for golden vectors")
    trial, truth = _ask_reference(checkpoint, codec, bars)
    golden(codec, trial, truth.vectors).save(directory / GOLDEN)
    found = measure(
        directory,
        request.formats,
        checkpoint.decoder,
        trial,
        truth,
        request.profile,
        documents=request.documents,
        scratch=staging.scratch,
        say=say,
    )
    back = partial(read_back, directory=directory, decoder=checkpoint.decoder, encodings=encodings)

    def read(what: Verified) -> Weights:
        if what != "documents":
            return back(what)
        smoothing = smooth(checkpoint.decoder, smoothed, importance)
        return DocumentsWeights(directory, checkpoint.decoder, smoothing, back("onnx"))

    verification = judge(found, smoothed, read, say, allow_drift=request.allow_drift)
    manifest = _manifest(
        directory, checkpoint, request, quantizer.calibration, encodings, verification, weights
    )
    (directory / MANIFEST).write_bytes(manifest.to_json())


def _encodings(
    checkpoint: Checkpoint,
    request: Request,
    importance: Mapping[str, Float32Array],
    say: Callable[[str], None],
    bars: Bars,
) -> dict[str, Encoding]:
    """Block format by tensor name, those linear layers measured that a budget is spent on."""
    decoder = checkpoint.decoder
    plain = request.encodings(decoder)
    limit = request.limit(decoder, request.metadata(checkpoint, plain))
    if limit is None:
        return plain
    judged = "" if importance else ", by the weights alone"
    say(f"measuring what 4 bits cost each linear layer{judged}")
    with bars("measuring", linear_weight_count(decoder)) as progress:
        worth = by_worth(checkpoint, importance, block_size=request.block_size, progress=progress)
    return request.encodings(decoder, choose_eight_bit(decoder, limit, worth))


def _ask_reference(checkpoint: Checkpoint, codec: Codec, bars: Bars) -> tuple[Trial, Answers]:
    """What the gate asks, and the float reference's answers."""
    engine, passed = ReferenceEngine(checkpoint), linear_weight_count(checkpoint.decoder)
    with bars("thinking", BUDGETS[-1] * passed) as progress, engine.watched(progress):
        trial, scores = set_trial(engine, codec)
    with bars("reading", passed) as progress, engine.watched(progress):
        return trial, answer_own(engine, trial, scores)


def _manifest(
    directory: Path,
    checkpoint: Checkpoint,
    request: Request,
    calibration: str,
    encodings: Mapping[str, Encoding],
    verification: Verification,
    weights: str,
) -> Manifest:
    """Describe the files that are in the directory; the model card is written on the way."""
    decoder = checkpoint.decoder
    # An export that was killed between the manifest and its publishing left these two.
    written = [path for path in sorted(directory.iterdir()) if path.name not in (MANIFEST, CARD)]
    entries = {path.name: file_entry(path) for path in written}
    tokenizer = entries[TOKENIZER].sha256
    documents = entries[DOCUMENTS_WEIGHTS].sha256 if request.documents else ""
    manifest = Manifest(
        schema=SCHEMA,
        name=request.name,
        profile=request.profile,
        source=checkpoint.source(),
        decoder=decoder,
        contract=request.contract,
        formats=tuple(request.formats),
        encodings=dict(Counter(encodings.values())),
        eight_bit=eight_bit_layers(decoder, encodings),
        calibration=calibration,
        files=entries,
        fingerprint=fingerprint(weights, tokenizer, request.contract, decoder, documents),
        verification=verification,
        tools=_tools(),
    )
    (directory / CARD).write_text(model_card(manifest), encoding="utf-8")
    return msgspec.structs.replace(manifest, files=entries | {CARD: file_entry(directory / CARD)})


def _tools() -> dict[str, str]:
    found = {"t1-edge": __version__, "python": sys.version.split()[0]}
    for package in ("numpy", "onnx", "gguf", "onnxruntime", "llama-cpp-python"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
