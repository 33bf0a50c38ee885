"""Ways to quantize a body's linear layers, each with what it was calibrated on."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from t1_edge.build import Decoder
from t1_edge.errors import ExportError
from t1_edge_export.bars import Bars, no_bars
from t1_edge_export.checkpoint import Checkpoint
from t1_edge_export.containers import BlockSize, Encoding
from t1_edge_export.decoder import TensorSpec, linear_layers
from t1_edge_export.quantize.blocks import Blocks, quantize_4_bits, round_4_bits
from t1_edge_export.quantize.gptq import gptq_4_bits, inverse_factor
from t1_edge_export.quantize.packed import pack
from t1_edge_export.quantize.smoothing import Smoothing, activation_aware
from t1_edge_export.quantize.statistics import Statistics, collect
from t1_edge_export.reference import Reference

Float32Array = NDArray[np.float32]


RowPacker = Callable[[Float32Array], NDArray[np.uint8]]
"""Takes rows of one tensor, and gives bytes as `pack` does; on any thread."""


class RowQuantizer(Protocol):
    """Takes rows of one tensor, and gives codes and scales as `quantize_4_bits`; on any thread."""

    def __call__(self, weights: Float32Array, *, block_size: BlockSize) -> Blocks:
        """Round rows, float32 [rows, in]."""


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """A way to quantize, fitted to what it was calibrated with.

    Attributes:
        four_bits: Takes a linear layer's tensor, and gives what quantizes rows of it. Layers come
            in the order of `decoder.tensors`, each once.
        packed: Likewise, with a block format of llama.cpp's own; None if it rounds to none of them.
        calibration: What it was calibrated with, for the manifest; empty if with nothing.
        importance: Gives the mean squared input of each channel, float32 [in], by tensor name, to
            judge layers by; nothing if it was calibrated with nothing. The first time may take
            long.
        smoothing: What is done to channels before: tensors are quantized, and the importance holds,
            behind it.
    """

    four_bits: Callable[[TensorSpec], RowQuantizer]
    packed: Callable[[TensorSpec, Encoding], RowPacker] | None = None
    calibration: str = ""
    importance: Callable[[], Mapping[str, Float32Array]] = dict
    smoothing: Smoothing = field(default_factory=Smoothing)

    def packer(self, spec: TensorSpec, encoding: Encoding) -> RowPacker:
        """What packs rows of a tensor as llama.cpp does.

        Raises:
            ExportError: If this quantizer does not.
        """
        if self.packed is None:
            raise ExportError(f"this quantizer rounds nothing to blocks of {encoding}")
        return self.packed(spec, encoding)


SEARCH: Final = Quantizer(
    four_bits=lambda spec: quantize_4_bits,
    packed=lambda spec, encoding: partial(pack, encoding=encoding),
)
"""The scale search, every weight's error counting alike."""


ROUNDING: Final = Quantizer(four_bits=lambda spec: round_4_bits, calibration="plain rounding")
"""ggml's own Q4_0, for comparison."""


def weighted(statistics: Statistics, decoder: Decoder) -> Quantizer:
    """The scale search, channels smoothed before, and errors weighted by their mean squares.

    Args:
        statistics: Of the checkpoint.
        decoder: The shape that they are of.
    """
    smoothing = activation_aware(decoder, statistics.importance)
    importance = smoothing.importance(statistics.importance)

    def four_bits(spec: TensorSpec) -> RowQuantizer:
        return partial(quantize_4_bits, importance=importance[spec.name])

    def packed(spec: TensorSpec, encoding: Encoding) -> RowPacker:
        return partial(pack, encoding=encoding, importance=importance[spec.name])

    return Quantizer(
        four_bits=four_bits,
        packed=packed,
        calibration=f"importance {statistics.digest}, channels smoothed: {statistics.dataset}",
        importance=lambda: importance,
        smoothing=smoothing,
    )


def compensated(
    checkpoint: Checkpoint,
    rows: Sequence[Sequence[int]],
    dataset: str,
    *,
    say: Callable[[str], None] = lambda text: None,
    bars: Bars = no_bars,
) -> Quantizer:
    """GPTQ, each layer given what the float model gives it; it gains nothing by smoothed channels.

    Args:
        checkpoint: The float weights that are quantized. They are read a second time, a block
            before it is quantized; memory holds that block and the rows' states.
        rows: Token ids, of the shape that the decoder will meet.
        dataset: What they are, for people to read.
        say: Called with a line of talk, should statistics be wanted; see `collect`.
        bars: Shows how far they are.
    """
    blocks = block_grams(checkpoint, rows)
    current: dict[str, Float32Array] = {}
    factors: list[tuple[Float32Array, Float32Array]] = []  # of a gram; q, k and v have one

    def four_bits(spec: TensorSpec) -> RowQuantizer:
        while spec.name not in current:
            current.clear()
            current.update(next(blocks))
        gram = current[spec.name]
        if not factors or factors[-1][0] is not gram:
            factors[:] = [(gram, inverse_factor(gram))]
        return partial(gptq_4_bits, factor=factors[-1][1])

    return Quantizer(
        four_bits=four_bits,
        calibration=f"GPTQ {_digest(rows)}: {dataset}",
        importance=cache(lambda: collect(checkpoint, rows, dataset, say=say, bars=bars).importance),
    )


def gptq_memory(decoder: Decoder) -> int:
    """Bytes of a block's Gram matrices, and of the widest on its way to a factor, in float64."""
    widths = {spec.shape[1] for spec in linear_layers(decoder)}
    return sum(4 * width**2 for width in widths) + 28 * max(widths) ** 2


def _digest(rows: Sequence[Sequence[int]]) -> str:
    """Twelve hex digits that change with the rows."""
    return hashlib.sha256(repr([tuple(row) for row in rows]).encode()).hexdigest()[:12]


def block_grams(
    checkpoint: Checkpoint, rows: Sequence[Sequence[int]]
) -> Iterator[Mapping[str, Float32Array]]:
    """Gram matrices of what linear layers are given, block by block.

    Args:
        checkpoint: The float weights.
        rows: Token ids.

    Yields:
        float32 [in, in] by tensor name, for each block.
    """
    found: dict[str, Float32Array] = {}
    seen: list[tuple[Float32Array, Float32Array]] = []  # q, k and v are given the same

    def observe(name: str, inputs: Float32Array) -> None:
        if not seen or seen[-1][0] is not inputs:
            seen[:] = [(inputs, inputs.T @ inputs)]
        found[name] = seen[-1][1]

    for _ in Reference(checkpoint, observe=observe).blocks(rows):
        yield dict(found)
        found.clear()
