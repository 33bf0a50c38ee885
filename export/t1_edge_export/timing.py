"""How long an export will take: a random block of the decoder's widths goes through each stage."""

import hashlib
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from t1_edge.build import Decoder, Source
from t1_edge.errors import ExportError
from t1_edge.machine import available_threads
from t1_edge_export.bars import Bars, no_bars
from t1_edge_export.checkpoint import Checkpoint, Origin
from t1_edge_export.decoder import linear_layers, linear_weight_count, tensors, weight_count
from t1_edge_export.golden_texts import DOCUMENTS, QUERIES
from t1_edge_export.journal import NOTHING, Journal
from t1_edge_export.onnx_documents import write_documents
from t1_edge_export.quantize.quantizer import weighted
from t1_edge_export.quantize.sensitivity import by_worth
from t1_edge_export.quantize.statistics import Statistics, collect
from t1_edge_export.reference_engine import ReferenceEngine, is_kept
from t1_edge_export.request import Request
from t1_edge_export.room import nearest_folder
from t1_edge_export.trial import BUDGETS
from t1_edge_export.weights import write_files

_VOCABULARY: Final = 4096
_NUMBERS: Final = 2**20  # that are random; weights are these, over and over
_HASHED_BYTES: Final = 2**25
_FEW_ROWS: Final = 2
_MANY_ROWS: Final = 18
_ROW_TOKENS: Final = 32
"""Of a row, of golden texts and of those to calibrate with: a query and its thought, about."""


class StageSeconds(msgspec.Struct, frozen=True, kw_only=True):
    """What the stages of an export take, about.

    What engines take to verify is not known before, and GPTQ's own arithmetic is not in it.

    Attributes:
        calibrating: Texts, through the float weights; 0 without any.
        writing: The files, by the weighted search; what decides who gets 8 bits, where that is
            asked for; and the checkpoint's hash.
        reference: The float reference's thoughts and vectors.
    """

    calibrating: float
    writing: float
    reference: float


def probe_seconds(checkpoint: Checkpoint, request: Request) -> StageSeconds:
    """Take a random block through the stages, on the disk that the files are for.

    Args:
        checkpoint: The float weights, with the contract's tokens.
        request: What to make of them.

    Raises:
        ExportError: If the destination cannot be written, or memory is too small for a block.
    """
    decoder, tokens = checkpoint.decoder, request.calibration.tokens
    block = _Block(msgspec.structs.replace(decoder, layers=1, vocabulary=_VOCABULARY))
    weights = weight_count(decoder)
    all_weights = weights / weight_count(block.decoder)
    linear = linear_weight_count(decoder) / linear_weight_count(block.decoder)
    writing, judging = _writing(block, request)
    return StageSeconds(
        calibrating=linear * _collecting(block, tokens) if tokens else 0.0,
        writing=all_weights * writing + linear * judging + weights * _hashing(),
        reference=all_weights * _answering(block, keep=is_kept(decoder)),
    )


class _Block:
    """A checkpoint of random weights, stored as bfloat16."""

    tokenizer = ""
    origin = Origin(id="")
    stored_bytes = 0

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._shapes = {spec.name: spec.shape for spec in tensors(decoder)}
        noise = np.random.default_rng(0).standard_normal(_NUMBERS, np.float32)
        self._stored = (noise.view(np.uint32) >> 16).astype(np.uint16)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        stored = np.resize(self._stored, (stop - start, *self._shapes[name][1:]))
        return (stored.astype(np.uint32) << 16).view(np.float32)

    def source(self, bars: Bars = no_bars) -> Source:
        return self.origin.hashed("")

    @property
    def statistics(self) -> Statistics:
        """Of channels that are all alike."""
        alike = {
            spec.name: np.ones(spec.shape[1], np.float32) for spec in linear_layers(self.decoder)
        }
        return Statistics(importance=alike, tokens=1, dataset="")


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _collecting(block: _Block, tokens: int) -> float:
    """Seconds of a block to collect statistics over tokens, whose number its reading does not mind.

    Raises:
        ExportError: If memory is too small.
    """
    row = range(_ROW_TOKENS)
    few, many = (
        _seconds(partial(collect, block, [row] * count, "")) for count in (_FEW_ROWS, _MANY_ROWS)
    )
    slope = max(many - few, 0.0) / (_MANY_ROWS - _FEW_ROWS)
    return few + slope * (tokens / _ROW_TOKENS - _FEW_ROWS)


def _writing(block: _Block, request: Request) -> tuple[float, float]:
    """Seconds of a block to write what all weights go into, and the rest, linear layers alone."""
    parent = nearest_folder(request.destination)
    writing = judging = 0.0
    for _ in range(2):  # the first time compiles
        try:
            with tempfile.TemporaryDirectory(prefix=".probe-", dir=parent) as folder:
                writing = _seconds(partial(_write, block, request, Path(folder)))
                judging = _seconds(partial(_judge, block, request, Path(folder)))
        except OSError as e:
            raise ExportError(f"cannot write to {parent}: {e.strerror}") from e
    return writing, judging


def _write(block: _Block, request: Request, folder: Path) -> None:
    journal = Journal.open(folder / "journal.jsonl", NOTHING)
    encodings = request.encodings(block.decoder)
    quantizer = weighted(block.statistics, block.decoder)
    smoothed = quantizer.smoothing.applied(block)
    write_files(folder, request.formats, smoothed, encodings, quantizer, journal)


def _judge(block: _Block, request: Request, folder: Path) -> None:
    importance = block.statistics.importance
    encodings = request.encodings(block.decoder)
    if request.budget:
        by_worth(block, importance, block_size=request.block_size)
    if request.documents:
        longest = request.contract.max_document_tokens
        write_documents(folder, block, encodings, importance, longest=longest)


def _hashing() -> float:
    """Seconds to hash a weight of two bytes, every thread another."""
    seconds = _seconds(partial(hashlib.sha256, bytes(_HASHED_BYTES)))
    return seconds / _HASHED_BYTES * 2 / available_threads()


def _answering(block: _Block, *, keep: bool) -> float:
    """Seconds of a block in what the gate asks: thoughts of the largest budget, and whole rows."""
    engine = ReferenceEngine(block, keep=keep)
    queries = [range(_ROW_TOKENS)] * len(QUERIES)
    with engine.start(queries, room=BUDGETS[-1]) as session:
        beginning = _seconds(session.logits)
        session.append(dict.fromkeys(range(len(queries)), 0))
        step = _seconds(session.logits)
    rows = [range(_ROW_TOKENS)] * (len(BUDGETS) * len(QUERIES) + len(DOCUMENTS))
    with engine.start(rows, room=1) as session:
        reading = _seconds(partial(session.peek, 0))
    return beginning + (BUDGETS[-1] - 1) * step + reading
