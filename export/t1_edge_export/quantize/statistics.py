"""Which input channels of a decoder matter: mean squared activations over rows of tokens.

Stored as llama.cpp stores an importance matrix: for each tensor `<name>.in_sum2`, the sum of
squares by channel, and `<name>.counts`, the tokens
(https://github.com/ggml-org/llama.cpp/pull/9400).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from t1_edge.build import Decoder
from t1_edge.errors import CheckpointError, ExportError
from t1_edge.machine import free_memory
from t1_edge_export.bars import Bars, no_bars
from t1_edge_export.checkpoint import Checkpoint, check_finite
from t1_edge_export.decoder import TensorSpec, layer_tensors, linear_layers, linear_weight_count
from t1_edge_export.gguf_checkpoint import gguf_names
from t1_edge_export.gguf_file import open_gguf
from t1_edge_export.reference import Reference
from t1_edge_export.room import BASE_MEMORY, check_memory

Float32Array = NDArray[np.float32]

_TYPE: Final = "imatrix"
_SQUARES: Final = ".in_sum2"
_COUNTS: Final = ".counts"


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What passed through the linear layers of a decoder.

    Attributes:
        importance: Mean squared input of each channel, float32 [in], by tensor name.
        tokens: How many tokens the means are over.
        dataset: What the tokens were, for people to read.
    """

    importance: Mapping[str, Float32Array]
    tokens: int
    dataset: str

    @property
    def digest(self) -> str:
        """Twelve hex digits that change with the figures."""
        found = hashlib.sha256()
        for name, means in sorted(self.importance.items()):
            found.update(name.encode() + means.tobytes())
        return found.hexdigest()[:12]

    def save(self, path: Path, decoder: Decoder) -> None:
        """Write a file that llama.cpp reads as an importance matrix, too.

        Args:
            path: Ends in .gguf.
            decoder: Whose statistics they are.

        Raises:
            ExportError: If the file cannot be written.
        """
        partial = path.with_name(f".{path.name}.partial")
        try:
            self._write(partial, decoder)
            partial.replace(path)
        except OSError as e:
            raise ExportError(f"cannot write {path}: {e.strerror or e}") from e
        finally:
            with suppress(OSError):
                partial.unlink()

    def _write(self, path: Path, decoder: Decoder) -> None:
        import gguf

        names = gguf_names(decoder)
        writer = gguf.GGUFWriter(path, decoder.family)
        try:
            writer.add_type(_TYPE)
            writer.add_array("imatrix.datasets", [self.dataset])
            writer.add_uint32("imatrix.chunk_count", 1)
            writer.add_uint32("imatrix.chunk_size", self.tokens)
            for name, means in self.importance.items():
                squares = (means.astype(np.float64) * self.tokens).astype(np.float32)
                writer.add_tensor(names[name] + _SQUARES, squares[None])
                writer.add_tensor(names[name] + _COUNTS, np.full((1, 1), self.tokens, np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def collecting_memory(decoder: Decoder, tokens: int) -> int:
    """Bytes that are resident while so many tokens pass through a decoder.

    The block of weights, and of each token what its MLP is as wide as three times, what its
    attention reads and gives, and the residual stream before and after.
    """
    block = 4 * sum(spec.size for spec in layer_tensors(decoder, 0))
    attention = (2 * decoder.heads + 2 * decoder.kv_heads) * decoder.head_dim
    widths = 3 * decoder.intermediate + attention + 3 * decoder.hidden
    return BASE_MEMORY + block + 4 * tokens * widths


def collect(
    checkpoint: Checkpoint,
    rows: Sequence[Sequence[int]],
    dataset: str,
    *,
    say: Callable[[str], None] = lambda text: None,
    bars: Bars = no_bars,
) -> Statistics:
    """Run the float reference over rows, and keep what its linear layers were given.

    Args:
        checkpoint: The float weights; memory holds one block of them, and the rows' states.
        rows: Token ids, of the shape that the decoder will meet.
        dataset: What they are, for people to read.
        say: Called with a line of talk before it begins.
        bars: Shows how far it is.

    Raises:
        CheckpointError: If a tensor cannot be read.
        ExportError: If memory is too small.
    """
    decoder, tokens = checkpoint.decoder, sum(map(len, rows))
    check_memory("collecting statistics", collecting_memory(decoder, tokens), free_memory())
    say(f"collecting statistics over {dataset}, {tokens} tokens")
    sizes = {spec.name: spec.size for spec in linear_layers(decoder)}
    found: dict[str, Float32Array] = {}

    def observe(name: str, inputs: Float32Array) -> None:
        found[name] = np.einsum("ti,ti->i", inputs, inputs) / np.float32(tokens)
        progress(sizes[name])

    with bars("collecting", linear_weight_count(decoder)) as progress:
        Reference(checkpoint, observe=observe).hidden_states(rows)
    return Statistics(importance=found, tokens=tokens, dataset=dataset)


def read_statistics(path: Path, decoder: Decoder) -> Statistics:
    """Statistics that `Statistics.save` or llama.cpp's llama-imatrix wrote.

    Args:
        path: The file.
        decoder: Whose statistics are wanted.

    Raises:
        CheckpointError: If the file is damaged, or lacks a linear layer of the decoder.
        MissingExtraError: If the gguf package is not installed.
    """
    file = open_gguf(path)
    stored = {
        name: tensor.rows(0, tensor.shape[0]).reshape(-1)
        for name, tensor in file.tensors.items()
        if name.endswith((_SQUARES, _COUNTS))  # a model's are gigabytes
    }
    names = gguf_names(decoder)
    linear = list(linear_layers(decoder))
    counts = [stored.get(names[spec.name] + _COUNTS, np.zeros(1, np.float32)) for spec in linear]
    datasets = file.keys.get("imatrix.datasets")
    return Statistics(
        importance={
            spec.name: _mean(stored, names[spec.name], spec, count, path)
            for spec, count in zip(linear, counts, strict=True)
        },
        tokens=int(max(count.max(initial=0) for count in counts)),
        dataset=", ".join(map(str, datasets)) if isinstance(datasets, list) else path.name,
    )


def _mean(
    stored: Mapping[str, Float32Array], name: str, spec: TensorSpec, count: Float32Array, path: Path
) -> Float32Array:
    squares = stored.get(name + _SQUARES)
    if squares is None or squares.shape != spec.shape[1:]:
        raise CheckpointError(
            f"{path} has no statistics of {name} with {spec.shape[1]} channels: they are of "
            "another model, or it is no importance matrix"
        )
    if count.size != 1 or not count[0] > 0 or not np.isfinite(squares).all() or squares.min() < 0:
        raise CheckpointError(f"{path} is damaged: the statistics of {name} are no mean squares")
    with np.errstate(over="ignore"):  # a tiny count
        means: Float32Array = squares / count[0]
    check_finite(means, name, path)
    return means
