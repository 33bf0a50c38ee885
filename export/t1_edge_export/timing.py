"""How long an export will take: a random block of the decoder's widths goes through each stage."""

import hashlib
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from t1_edge.build import Decoder, Source
from t1_edge.errors import ExportError
from t1_edge.machine import available_threads
from t1_edge_export.checkpoint import Checkpoint
from t1_edge_export.containers import Encoding
from t1_edge_export.decoder import tensors, weight_count
from t1_edge_export.formats import choose_encodings, open_container
from t1_edge_export.golden_texts import DOCUMENTS, QUERIES
from t1_edge_export.journal import Journal
from t1_edge_export.onnx_documents import write_documents
from t1_edge_export.quantize.quantizer import SEARCH
from t1_edge_export.quantize.sensitivity import by_worth
from t1_edge_export.quantize.statistics import collect
from t1_edge_export.reference_engine import ReferenceEngine, is_kept
from t1_edge_export.request import Request
from t1_edge_export.room import nearest_folder
from t1_edge_export.trial import BUDGETS
from t1_edge_export.weights import write_weights

_VOCABULARY: Final = 4096
_HASHED: Final = 2**25
_NOISE: Final = 2**20
_COLLECTED: Final = 256  # tokens
_LENGTH: Final = 24  # of a golden row, about


class Seconds(msgspec.Struct, frozen=True, kw_only=True):
    """What the stages of an export take, about. What engines take to verify is not known before.

    Attributes:
        collecting: Statistics over texts; 0 without.
        writing: The files, by the scale search; GPTQ takes several times as long.
        reference: The float reference's thoughts and vectors.
    """

    collecting: float
    writing: float
    reference: float


def probe_seconds(
    checkpoint: Checkpoint, request: Request, *, collected_tokens: int = 0
) -> Seconds:
    """Take a random block through the stages, on the disk that the files are for.

    Args:
        checkpoint: The float weights, with the contract's tokens.
        request: What to make of them.
        collected_tokens: Tokens that statistics are collected over before.

    Raises:
        ExportError: If the destination cannot be written.
    """
    decoder = checkpoint.decoder
    noise = _Noise(msgspec.structs.replace(decoder, layers=1, vocabulary=_VOCABULARY))
    times = weight_count(decoder) / weight_count(noise.decoder)
    return Seconds(
        collecting=times * collected_tokens / _COLLECTED * _collecting(noise)
        if collected_tokens
        else 0.0,
        writing=times * _writing(noise, request) + weight_count(decoder) * _hashing(),
        reference=times * _answering(noise, keep=is_kept(decoder)),
    )


class _Noise:
    """A checkpoint of random weights."""

    tokenizer = ""
    source = Source(id="", sha256="", licence="")
    stored_bytes = 0

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._shapes = {spec.name: spec.shape for spec in tensors(decoder)}
        self._noise = np.random.default_rng(0).standard_normal(_NOISE, np.float32)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        return np.resize(self._noise, (stop - start, *self._shapes[name][1:]))


def _collecting(noise: _Noise) -> float:
    began = time.perf_counter()
    collect(noise, [range(_COLLECTED)], "")
    return time.perf_counter() - began


def _writing(noise: _Noise, request: Request) -> float:
    """Seconds of writing a block, and of measuring it where a budget asks for that."""
    parent = nearest_folder(request.destination)
    encodings = choose_encodings(noise.decoder, request.profile, request.formats)
    seconds = 0.0
    for _ in range(2):  # the first time compiles
        try:
            with tempfile.TemporaryDirectory(prefix=".probe-", dir=parent) as folder:
                began = time.perf_counter()
                if request.budget:
                    by_worth(noise, {})
                _write(noise, encodings, request, Path(folder))
                seconds = time.perf_counter() - began
        except OSError as e:
            raise ExportError(f"cannot write to {parent}: {e.strerror}") from e
    return seconds


def _write(
    noise: _Noise, encodings: Mapping[str, Encoding], request: Request, folder: Path
) -> None:
    journal = Journal.open(folder / "journal.jsonl", "")
    with ExitStack() as stack:
        containers = []
        for format in request.formats:
            containers.append(open_container(format, folder, noise.decoder, encodings, b""))
            stack.callback(containers[-1].abort)
        write_weights(noise, encodings, SEARCH, containers, journal)
        for container in containers:
            container.finish()
    if request.documents:
        write_documents(folder, noise, encodings, {})


def _hashing() -> float:
    """Seconds of hashing a weight as it is stored, two bytes, beside the others."""
    began = time.perf_counter()
    hashlib.sha256(bytes(_HASHED)).hexdigest()
    return (time.perf_counter() - began) / _HASHED * 2 / available_threads()


def _answering(noise: _Noise, *, keep: bool) -> float:
    """Seconds of a block in what the gate asks: thoughts of the largest budget, and whole rows."""
    engine = ReferenceEngine(noise, keep=keep)
    queries = [range(_LENGTH)] * len(QUERIES)
    with engine.start(queries, room=BUDGETS[-1]) as session:
        first = time.perf_counter()
        session.logits()
        second = time.perf_counter()
        session.append(dict.fromkeys(range(len(queries)), 0))
        session.logits()
        step = time.perf_counter() - second
    rows = [range(_LENGTH)] * (2 * len(QUERIES) + len(DOCUMENTS))
    with engine.start(rows, room=1) as session:
        began = time.perf_counter()
        session.peek(0)
        return second - first + (BUDGETS[-1] - 1) * step + time.perf_counter() - began
