"""Mixed precision: which linear layers have 8 bits, and not 4, within a budget."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from t1_edge.build import Decoder, Format, Profile
from t1_edge.errors import ExportError
from t1_edge_export.containers import EIGHT_BITS, FOUR_BITS, BlockSize, Encoding
from t1_edge_export.containers import bits as bits_of
from t1_edge_export.decoder import TensorSpec, linear_layers
from t1_edge_export.formats import choose_encodings, file_sizes
from t1_edge_export.gguf_metadata import tensor_bytes

_NODE: Final = 4096
"""More bytes than the nodes that a graph gains or saves: what multiplies the same is one product
where all has one encoding, and up to three where not."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How large a build may become: in one of two measures.

    Attributes:
        bits: Most bits of a weight, the mean over all linear layers, shares of scales included:
            what llama.cpp calls bits per weight. A GGUF of wider blocks has each scale several
            times, and more bits. The embedding and the head have 8 besides.
        size: Most bytes of the files that one engine reads (`Build.size`), whichever reads more.

    Raises:
        ExportError: If there are both, or neither.
    """

    bits: float | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if (self.bits is None) == (self.size is None):
            raise ExportError("a budget is either bits or a target size: give one of them")


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A budget, applied to a decoder.

    Attributes:
        cost: Bytes that count, by the linear layers that have 8 bits.
        most: Bytes that there may be.
    """

    cost: Callable[[Iterable[str]], int]
    most: int


def find_limit(
    budget: Budget,
    decoder: Decoder,
    profile: Profile,
    formats: Sequence[Format],
    metadata: bytes,
    *,
    block_size: BlockSize,
) -> Limit:
    """What a budget means for a decoder.

    Args:
        budget: What is wanted.
        decoder: The shape of the model.
        profile: How it is quantized; not float, which has no budget.
        formats: What is written.
        metadata: What stands before the tensors of a GGUF; as long as it will be.
        block_size: Weights that share a scale.

    Raises:
        CheckpointError: If blocks do not divide a tensor.
        ExportError: If all layers at 4 bits are above the budget, or all at 8 below it.
    """
    if budget.bits is not None:
        return _limit_of_bits(budget.bits, decoder, block_size)

    def cost(eight_bit: Iterable[str]) -> int:
        encodings = choose_encodings(decoder, profile, formats, eight_bit, block_size=block_size)
        files = [file_sizes(format, decoder, encodings, metadata) for format in formats]
        return max(sum(sizes.values()) for sizes in files)

    everything = [spec.name for spec in linear_layers(decoder)]
    least, most = cost([]), cost(everything)
    size = budget.size or 0
    if not least <= size <= most:
        raise ExportError(
            f"a target size of {size:,} bytes is out of reach: with all linear layers at 4 bits "
            f"the larger format has {least:,} bytes, with all at 8 it has {most:,}"
        )
    return Limit(cost=cost, most=size)


def choose_eight_bit(
    decoder: Decoder, limit: Limit, order: Sequence[TensorSpec]
) -> tuple[str, ...]:
    """Give 8 bits to layers, one after the other, while they fit.

    What the best choice of all would gain beyond this one is less than the worth of the first layer
    that was passed over, one of hundreds (Dantzig 1957).

    Args:
        decoder: The shape of the model.
        limit: What fits.
        order: The linear layers, those whose bytes are worth most first.

    Returns:
        Names of tensors, in the order of `decoder.tensors`.
    """
    names = [spec.name for spec in order]
    # By halving: to lay out the files for every layer anew would take seconds.
    counts = range(len(names) + 1)
    first = bisect_right(counts, limit.most, key=lambda count: limit.cost(names[:count])) - 1
    chosen, used = names[:first], limit.cost(names[:first])
    for spec in order[first:]:
        if used + _growth(spec) <= limit.most and limit.cost([*chosen, spec.name]) <= limit.most:
            chosen.append(spec.name)
            used = limit.cost(chosen)
    return tuple(spec.name for spec in linear_layers(decoder) if spec.name in chosen)


def eight_bit_layers(decoder: Decoder, encodings: Mapping[str, Encoding]) -> tuple[str, ...]:
    """The linear layers that have 8 bits, by name, in the order of `decoder.tensors`."""
    layers = (spec.name for spec in linear_layers(decoder))
    return tuple(name for name in layers if encodings[name] in EIGHT_BITS.values())


def _limit_of_bits(bits: float, decoder: Decoder, block_size: BlockSize) -> Limit:
    least, most = bits_of(FOUR_BITS[block_size]), bits_of(EIGHT_BITS[block_size])
    if not least <= bits <= most:
        raise ExportError(
            f"{bits} bits are out of reach: in blocks of {block_size} a weight has {least} with "
            f"all linear layers at 4 bits, {most} with all at 8"
        )
    layers = list(linear_layers(decoder))

    def cost(eight_bit: Iterable[str]) -> int:
        chosen = frozenset(eight_bit)
        stored = sum(spec.size * (most if spec.name in chosen else least) for spec in layers)
        return int(stored) // 8

    return Limit(cost=cost, most=int(bits * sum(spec.size for spec in layers) / 8))


def _growth(spec: TensorSpec) -> int:
    """Bytes that 8 bits add at least: of codes, less what a graph may save elsewhere."""
    return tensor_bytes(spec, "q8_0") - tensor_bytes(spec, "q4_0") - _NODE
