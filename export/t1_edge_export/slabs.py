"""A checkpoint as slabs of quantized rows: in order, a few at a time, on every core."""

from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from t1_edge.errors import CheckpointError
from t1_edge.machine import available_threads
from t1_edge_export.checkpoint import Checkpoint
from t1_edge_export.containers import BLOCK_SIZES, CODE_BITS, Encoding, Slab
from t1_edge_export.decoder import TensorSpec, tensors
from t1_edge_export.quantize.blocks import quantize_8_bits
from t1_edge_export.quantize.packed import LARGEST, PACKED
from t1_edge_export.quantize.quantizer import Quantizer, RowPacker, RowQuantizer

Float32Array = NDArray[np.float32]
T = TypeVar("T")

_Rounding = Callable[[int, Float32Array], Slab]
"""Takes the number of the first row, and rows, float32 [rows, in]; on any thread."""

SLAB_WEIGHTS: Final = 8 * 2**20
"""Most weights of a slab: 32 MiB of float32, about twice that while they are quantized."""


def encode(
    checkpoint: Checkpoint,
    encodings: Mapping[str, Encoding],
    quantizer: Quantizer,
    *,
    without: Container[str] = (),
) -> Iterator[Slab]:
    """Read and quantize the tensors of a checkpoint.

    Args:
        checkpoint: The float weights.
        encodings: Block format by tensor name.
        quantizer: How linear layers are rounded to 4 bits, and errors weighed in blocks that
            llama.cpp packs.
        without: Tensors to leave out.

    Yields:
        Slabs in the order of `decoder.tensors`; those of a tensor from the top. At most a few wait
        to be taken.

    Raises:
        CheckpointError: If a tensor cannot be read, or weights are too large for float16 scales.
        EngineError: If llama.cpp's kernels are not to be had.
        ExportError: If the quantizer rounds to none of llama.cpp's own blocks, which are asked for.
    """
    return in_order(_works(checkpoint, encodings, quantizer, without))


def in_order(works: Iterator[Callable[[], T]]) -> Iterator[T]:
    """Do pieces of work on every core.

    Args:
        works: They are drawn in order, by the caller's thread.

    Yields:
        What they give, in order. At most a few results wait to be taken.
    """
    threads = available_threads()
    due: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for work in works:
                due.append(pool.submit(work))
                if len(due) > threads:
                    yield due.popleft().result()
            while due:
                yield due.popleft().result()
        finally:
            for future in due:
                future.cancel()


def spans(spec: TensorSpec, head_dim: int) -> Iterator[range]:
    """Rows of a tensor's slabs: whole heads, whose rows llama.cpp keeps in another order."""
    rows = SLAB_WEIGHTS // spec.shape[-1] // head_dim * head_dim
    step = spec.shape[0] if spec.role == "norm" else max(rows, head_dim)
    for start in range(0, spec.shape[0], step):
        yield range(start, min(start + step, spec.shape[0]))


def quantize(
    spec: TensorSpec,
    start: int,
    weights: Float32Array,
    encoding: Encoding,
    rounded: RowQuantizer,
) -> Slab:
    """Quantize rows of a tensor.

    Args:
        spec: The tensor.
        start: The first row.
        weights: float32 [rows, in].
        encoding: The block format.
        rounded: What rounds to it.

    Raises:
        CheckpointError: If weights are too large for float16 scales.
    """
    codes, scales = rounded(weights, block_size=BLOCK_SIZES[encoding])
    if not np.isfinite(scales).all():
        raise _too_large(spec)
    return Slab(spec=spec, encoding=encoding, start=start, codes=codes, scales=scales)


def _works(
    checkpoint: Checkpoint,
    encodings: Mapping[str, Encoding],
    quantizer: Quantizer,
    without: Container[str],
) -> Iterator[Callable[[], Slab]]:
    for spec in tensors(checkpoint.decoder):
        if spec.name in without:
            continue
        rounded = _rounding(spec, encodings[spec.name], quantizer)
        for rows in spans(spec, checkpoint.decoder.head_dim):
            yield partial(_encode, checkpoint, spec, rows, rounded)


def _encode(checkpoint: Checkpoint, spec: TensorSpec, rows: range, rounded: _Rounding) -> Slab:
    return rounded(rows.start, checkpoint.rows(spec.name, rows.start, rows.stop))


def _rounding(spec: TensorSpec, encoding: Encoding, quantizer: Quantizer) -> _Rounding:
    if encoding in PACKED:
        return partial(_pack, spec, encoding, quantizer.packer(spec, encoding))
    if encoding == "f32":
        return partial(_keep, spec)
    rounded = quantizer.four_bits(spec) if CODE_BITS[encoding] == 4 else quantize_8_bits
    return lambda start, weights: quantize(spec, start, weights, encoding, rounded)


def _keep(spec: TensorSpec, start: int, weights: Float32Array) -> Slab:
    return Slab(spec=spec, encoding="f32", start=start, codes=weights)


def _pack(
    spec: TensorSpec,
    encoding: Encoding,
    packer: RowPacker,
    start: int,
    weights: Float32Array,
) -> Slab:
    if np.abs(weights).max() > LARGEST:
        raise _too_large(spec)
    return Slab(spec=spec, encoding=encoding, start=start, codes=packer(weights))


def _too_large(spec: TensorSpec) -> CheckpointError:
    return CheckpointError(f"{spec.name} holds weights too large for float16 scales")
