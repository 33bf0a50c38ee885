"""A checkpoint in the shape of a published one, of random weights: for memory and speed alone.

    python -m peers.random_checkpoint OUT [--layers 36]

The shape is Qwen3-4B's (config.json of Qwen/Qwen3-4B): 8 GB of bfloat16 in shards. The tokenizer is
that of smollm2-135m (`t1-edge pull smollm2-135m`), whose ids it has rows for.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import click
import msgspec
import numpy as np
from numpy.typing import NDArray

from peers.checkpoint_folder import write
from t1_edge.build import Decoder
from t1_edge_export.checkpoint import find_checkpoint, open_checkpoint
from t1_edge_export.decoder import TensorSpec

QWEN3_4B: Final = Decoder(
    family="qwen3",
    hidden=2560,
    layers=36,
    heads=32,
    kv_heads=8,
    head_dim=128,
    intermediate=9728,
    vocabulary=151_936,
    positions=40_960,
    rope_theta=1e6,
    norm_epsilon=1e-6,
    tied=True,
)

_DEVIATION: Final = np.float32(0.02)


def _rows(spec: TensorSpec, random: np.random.Generator) -> Iterator[bytes]:
    """A tensor's bytes, some rows at a time; norms are near 1."""
    width = spec.shape[-1]
    count = spec.size // width
    step = max(1, 2**22 // width)
    for start in range(0, count, step):
        values = random.standard_normal((min(step, count - start), width), np.float32) * _DEVIATION
        yield _bfloat16(values + np.float32(len(spec.shape) == 1)).tobytes()


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves of float32, cut off."""
    return (values.view(np.uint32) >> 16).astype("<u2")


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--layers", default=QWEN3_4B.layers, show_default=True)
def main(out: Path, layers: int) -> None:
    """Write a random checkpoint of Qwen3-4B's shape to OUT."""
    tokenizer = open_checkpoint(find_checkpoint("smollm2-135m")).tokenizer
    rows = partial(_rows, random=np.random.default_rng(0))
    decoder = msgspec.structs.replace(QWEN3_4B, layers=layers)
    write(out, decoder, tokenizer, "bfloat16", rows)


if __name__ == "__main__":
    main()
