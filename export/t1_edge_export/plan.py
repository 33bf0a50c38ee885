"""What an export will write and need, known before a weight is read."""

import hashlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from t1_edge.build import TOKENIZER, Decoder, Format, Source
from t1_edge.errors import ExportError
from t1_edge.machine import available_threads, free_memory
from t1_edge_export.checkpoint import Checkpoint
from t1_edge_export.containers import Encoding, bits
from t1_edge_export.decoder import linear_layers, tensors, weight_count
from t1_edge_export.formats import choose_encodings, file_sizes, open_container
from t1_edge_export.journal import Journal
from t1_edge_export.precision import choose_eight_bit, find_limit
from t1_edge_export.quantize.quantizer import SEARCH
from t1_edge_export.quantize.sensitivity import by_worth
from t1_edge_export.quantize.statistics import collecting_memory
from t1_edge_export.reference_engine import reference_memory
from t1_edge_export.request import Request
from t1_edge_export.room import BASE_MEMORY, check_disk, check_memory, nearest_folder
from t1_edge_export.slabs import SLAB_WEIGHTS
from t1_edge_export.weights import write_weights

_SLABS_A_THREAD: Final = 4
"""What a process of two threads had resident (docs/LOG.md): a slab is held as stored, as float32,
as codes and as packed bytes."""

_ENGINE_MEMORY: Final[Mapping[Format, float]] = {"onnx": 2.0, "gguf": 2.4}
"""Times its file, since engines repack weights for the processor (docs/LOG.md)."""

_PROBE_VOCABULARY: Final = 4096
_HASHED: Final = 2**25
_NOISE: Final = 2**20


class Tensors(msgspec.Struct, frozen=True, kw_only=True):
    """Tensors of one block format.

    Attributes:
        encoding: The format.
        count: How many tensors.
        weights: Of them all.
        bits: Of a weight, its share of a scale included.
    """

    encoding: Encoding
    count: int
    weights: int
    bits: float


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What an export will do.

    Attributes:
        tensors: By block format.
        within_budget: Whether 8 bits go to the layers that lose most to 4, which is measured while
            the export runs. Until then the figures are of another choice that fills the budget: it
            has other counts of tensors, and sizes that differ by less than a layer's.
        destination: Where to.
        files: Sizes in bytes by name; of the large files, to within the length of a few names.
        free_disk: Bytes that there are at the destination.
        memory: Bytes that are resident at most in the exporter itself.
        engine_memory: Bytes that the largest engine needs, which verifies them.
        free_memory: Bytes that there are.
    """

    tensors: tuple[Tensors, ...]
    within_budget: bool
    destination: str
    files: dict[str, int]
    free_disk: int
    memory: int
    engine_memory: int
    free_memory: int

    @property
    def disk(self) -> int:
        """Bytes that it needs at the destination."""
        return sum(self.files.values())


def make_plan(
    checkpoint: Checkpoint,
    request: Request,
    *,
    quantizer_memory: int = 0,
    collected_tokens: int = 0,
) -> Plan:
    """Plan an export that `check_request` refuses nothing of.

    Args:
        checkpoint: The float weights, with the contract's tokens.
        request: What to make of them.
        quantizer_memory: Bytes that the quantizer will have resident, see `Quantizer.memory`.
        collected_tokens: Tokens that statistics are collected over before.
    """
    decoder, profile, formats = checkpoint.decoder, request.profile, request.formats
    encodings = choose_encodings(decoder, profile, formats)
    metadata = request.metadata(checkpoint, encodings)
    if request.budget:
        limit = find_limit(request.budget, decoder, profile, formats, metadata)
        chosen = choose_eight_bit(decoder, limit, list(linear_layers(decoder)))
        encodings = choose_encodings(decoder, profile, formats, chosen)
    files = {TOKENIZER: len(checkpoint.tokenizer.encode())}
    engines = []
    for format in formats:
        sizes = file_sizes(
            format, decoder, encodings, metadata, cuda=request.cuda, documents=request.documents
        )
        engines.append(_ENGINE_MEMORY[format] * sum(sizes.values()))
        files |= sizes
    return Plan(
        tensors=_count(decoder, encodings),
        within_budget=request.budget is not None,
        destination=str(request.destination),
        files=files,
        free_disk=shutil.disk_usage(nearest_folder(request.destination)).free,
        memory=max(
            _memory_to_export(decoder) + quantizer_memory,
            collecting_memory(decoder, collected_tokens) if collected_tokens else 0,
        ),
        engine_memory=BASE_MEMORY + int(max(engines)),
        free_memory=free_memory(),
    )


def check_room(plan: Plan, *, resumed: bool = False) -> None:
    """Whether there is room in memory and on the disk.

    Args:
        plan: What the export will need.
        resumed: Whether some of the files may be there already; then the disk is not asked.

    Raises:
        ExportError: If there is not.
    """
    check_memory("exporting", plan.memory, plan.free_memory)
    if not resumed:
        check_disk(plan.destination, plan.disk, plan.free_disk)


def seconds_to_write(checkpoint: Checkpoint, request: Request) -> float:
    """How long the files will take: a random block of the decoder's widths is written, twice.

    To the same disk, by the scale search: GPTQ takes longer.

    Args:
        checkpoint: The float weights, with the contract's tokens.
        request: What to make of them.

    Raises:
        ExportError: If the destination cannot be written.
    """
    decoder, parent = checkpoint.decoder, nearest_folder(request.destination)
    small = msgspec.structs.replace(decoder, layers=1, vocabulary=_PROBE_VOCABULARY)
    encodings = choose_encodings(small, request.profile, request.formats)
    seconds = 0.0
    for _ in range(2):  # the first time compiles
        try:
            with tempfile.TemporaryDirectory(prefix=".probe-", dir=parent) as folder:
                began = time.perf_counter()
                if request.budget:
                    by_worth(_Noise(small), {})
                _write_block(small, encodings, request.formats, Path(folder))
                seconds = time.perf_counter() - began
        except OSError as e:
            raise ExportError(f"cannot write to {parent}: {e.strerror}") from e
    weights = weight_count(decoder)
    began = time.perf_counter()
    hashlib.sha256(bytes(_HASHED)).hexdigest()
    hashing = (time.perf_counter() - began) / _HASHED * 2 / available_threads()
    return weights * (seconds / weight_count(small) + hashing)


def _memory_to_export(decoder: Decoder) -> int:
    """Bytes that are resident at most while a decoder is written, and then asked as reference."""
    slabs = _SLABS_A_THREAD * available_threads() * SLAB_WEIGHTS * 4
    writing = min(slabs, 4 * weight_count(decoder))
    return BASE_MEMORY + max(writing, reference_memory(decoder))


def _count(decoder: Decoder, encodings: Mapping[str, Encoding]) -> tuple[Tensors, ...]:
    counts, weights = Counter(encodings.values()), Counter[Encoding]()
    for spec in tensors(decoder):
        weights[encodings[spec.name]] += spec.size
    return tuple(
        Tensors(encoding=e, count=counts[e], weights=weights[e], bits=bits(e)) for e in weights
    )


def _write_block(
    decoder: Decoder,
    encodings: Mapping[str, Encoding],
    formats: Sequence[Format],
    folder: Path,
) -> None:
    journal = Journal.open(folder / "journal.jsonl", "")
    with ExitStack() as stack:
        containers = []
        for format in formats:
            containers.append(open_container(format, folder, decoder, encodings, b""))
            stack.callback(containers[-1].abort)
        write_weights(_Noise(decoder), encodings, SEARCH, containers, journal)


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
