"""What an export will write and need, known before a weight is read."""

import shutil
from collections import Counter
from collections.abc import Mapping
from typing import Final

import msgspec

from t1_edge.build import DOCUMENTS_GRAPH, DOCUMENTS_WEIGHTS, TOKENIZER, Decoder, Format
from t1_edge.machine import available_threads, free_memory
from t1_edge_export.checkpoint import Checkpoint
from t1_edge_export.containers import BlockSize, Encoding, bits
from t1_edge_export.decoder import linear_layers, tensors, weight_count
from t1_edge_export.formats import file_sizes
from t1_edge_export.precision import choose_eight_bit
from t1_edge_export.quantize.statistics import collecting_memory
from t1_edge_export.reference_engine import reference_memory
from t1_edge_export.request import Request
from t1_edge_export.room import BASE_MEMORY, check_disk, check_memory, nearest_folder
from t1_edge_export.slabs import SLAB_WEIGHTS

_SLABS_A_THREAD: Final = 4
"""What a process of two threads had resident (docs/LOG.md): a slab is held as stored, as float32,
as codes and as packed bytes."""

_ONNX_MEMORY: Final[Mapping[BlockSize, float]] = {32: 1.8, 64: 1.6, 128: 1.4}
_GGUF_MEMORY: Final = 1.3
_DOCUMENTS_MEMORY: Final = 1.4
_FLOAT_MEMORY: Final = 1.2
"""Times the files: engines repack weights for the processor (docs/LOG.md, 2026-11-27). What they
have mapped besides is the page cache's, and not counted."""


class Tensors(msgspec.Struct, frozen=True, kw_only=True):
    """Tensors of one block format.

    Attributes:
        encoding: The format.
        count: How many tensors.
        weights: Of them all.
        bits: Of a weight, its share of a scale included; a GGUF has one for every 32 besides.
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
        engine_memory: Bytes that the largest engine needs, by format; engines verify what was
            written one after another.
        free_memory: Bytes that there are.
    """

    tensors: tuple[Tensors, ...]
    within_budget: bool
    destination: str
    files: dict[str, int]
    free_disk: int
    memory: int
    engine_memory: dict[Format, int]
    free_memory: int

    @property
    def disk(self) -> int:
        """Bytes that it needs at the destination."""
        return sum(self.files.values())


def make_plan(checkpoint: Checkpoint, request: Request) -> Plan:
    """Plan an export that `check_request` refuses nothing of.

    Args:
        checkpoint: The float weights, with the contract's tokens.
        request: What to make of them.
    """
    decoder, calibration = checkpoint.decoder, request.calibration
    encodings = request.encodings(decoder)
    metadata = request.metadata(checkpoint, encodings)
    if limit := request.limit(decoder, metadata):
        chosen = choose_eight_bit(decoder, limit, list(linear_layers(decoder)))
        encodings = request.encodings(decoder, chosen)
    files = {TOKENIZER: len(checkpoint.tokenizer.encode())}
    longest = request.contract.max_document_tokens if request.documents else None
    engines: dict[Format, int] = {}
    for format in request.formats:
        sizes = file_sizes(
            format, decoder, encodings, metadata, cuda=request.cuda, longest_document=longest
        )
        engines[format] = BASE_MEMORY + int(_repacked(format, request, sizes))
        files |= sizes
    return Plan(
        tensors=_count(decoder, encodings),
        within_budget=request.budget is not None,
        destination=str(request.destination),
        files=files,
        free_disk=shutil.disk_usage(nearest_folder(request.destination)).free,
        memory=max(
            _memory_to_export(decoder) + calibration.quantizer_memory(decoder),
            collecting_memory(decoder, calibration.tokens) if calibration.tokens else 0,
        ),
        engine_memory=engines,
        free_memory=free_memory(),
    )


def check_room(plan: Plan, *, resumed: bool = False, ignore_engine_memory: bool = False) -> None:
    """Whether there is room in memory and on the disk.

    Args:
        plan: What the export will need.
        resumed: Whether some of the files may be there already; then the disk is not asked.
        ignore_engine_memory: Whether the engines that verify are not asked about.

    Raises:
        ExportError: If there is not.
    """
    check_memory("exporting", plan.memory, plan.free_memory)
    if not ignore_engine_memory:
        _check_engines(plan)
    if not resumed:
        check_disk(plan.destination, plan.disk, plan.free_disk)


def _check_engines(plan: Plan) -> None:
    """Whether the engines that verify have room."""
    fitting = [format for format, size in plan.engine_memory.items() if size <= plan.free_memory]
    instead = "".join(
        f", or write {format} alone (--format {format}, without --documents and --cuda)"
        for format in fitting
    )
    instead += ", or try it (--ignore-engine-memory: with swap it may do)"
    for format, needed in plan.engine_memory.items():
        check_memory(f"verifying what is written for {format}", needed, plan.free_memory, instead)


def _repacked(format: Format, request: Request, sizes: Mapping[str, int]) -> float:
    """Bytes of a format's files as its engine has them resident, where that is most."""
    for_documents = sum(sizes.get(name, 0) for name in (DOCUMENTS_GRAPH, DOCUMENTS_WEIGHTS))
    whole = sum(sizes.values()) - for_documents
    if request.profile == "float":
        return _FLOAT_MEMORY * whole
    if format == "gguf":
        return _GGUF_MEMORY * whole
    return max(_ONNX_MEMORY[request.block_size] * whole, _DOCUMENTS_MEMORY * for_documents)


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
