"""The formats that a build may hold: what their tensors are stored as, and what writes them."""

from collections.abc import Collection, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from t1_edge.build import (
    DOCUMENTS_GRAPH,
    DOCUMENTS_WEIGHTS,
    GGUF_MODEL,
    ONNX_WEIGHTS,
    Decoder,
    Format,
    Profile,
)
from t1_edge.errors import CheckpointError, ExportError, MissingExtraError
from t1_edge_export.checkpoint import Weights
from t1_edge_export.containers import (
    BLOCK,
    EIGHT_BITS,
    FOUR_BITS,
    BlockSize,
    ContainerWriter,
    Encoding,
)
from t1_edge_export.decoder import Role, tensors
from t1_edge_export.mixture import mixture


def choose_encodings(
    decoder: Decoder,
    profile: Profile,
    formats: Collection[Format],
    eight_bit: Iterable[str] = (),
    *,
    block_size: BlockSize,
) -> dict[str, Encoding]:
    """Block format by tensor name.

    Args:
        decoder: The shape of the model.
        profile: How it is quantized.
        formats: What is written.
        eight_bit: Linear layers that have 8 bits, whatever the profile says.
        block_size: Weights that share a scale, of tensors in 4 and 8 bits.

    Raises:
        CheckpointError: If the blocks of a format do not divide a tensor.
    """
    roles = _encodings(profile, block_size)
    encodings = {spec.name: roles[spec.role] for spec in tensors(decoder)}
    if profile == "native" and "gguf" in formats:
        encodings |= mixture(decoder)
    encodings |= dict.fromkeys(eight_bit, EIGHT_BITS[block_size])
    rounded = [spec for spec in tensors(decoder) if encodings[spec.name] != "f32"]
    for spec in rounded:
        if spec.shape[-1] % block_size:
            raise CheckpointError(
                f"{spec.name} is {spec.shape[-1]} wide, which blocks of {block_size} do not "
                f"divide; export it with {_instead({spec.shape[-1] for spec in rounded})}"
            )
    return encodings


def _encodings(profile: Profile, block_size: BlockSize) -> Mapping[Role, Encoding]:
    if profile == "float":
        return {"embedding": "f32", "linear": "f32", "norm": "f32", "head": "f32"}
    four, eight = FOUR_BITS[block_size], EIGHT_BITS[block_size]
    return {"embedding": eight, "linear": four, "norm": "f32", "head": eight}


def _instead(widths: Collection[int]) -> str:
    """What to export with where blocks do not divide these widths."""
    divide = [size for size in FOUR_BITS if not any(width % size for width in widths)]
    return f"--block-size {max(divide)}" if divide else "--profile float"


def require_writer(format: Format) -> None:
    """Whether the package is installed that has a format's name, and helps to write it.

    Raises:
        MissingExtraError: If it is not.
    """
    if find_spec(format) is None:
        raise MissingExtraError(format, "export")


def check_profile(
    profile: Profile,
    formats: Collection[Format],
    *,
    budget: bool,
    chosen: bool,
    packs: bool,
    cuda: bool,
    documents: bool,
    block_size: BlockSize,
) -> None:
    """Whether a build of a profile can hold what is asked for.

    Args:
        profile: How it is quantized.
        formats: What is written.
        budget: Whether there is one.
        chosen: Whether it was said how weights are rounded.
        packs: Whether the quantizer rounds to llama.cpp's own blocks too.
        cuda: With ONNX's graph for CUDA.
        documents: With ONNX's graph for documents.
        block_size: Weights that share a scale.

    Raises:
        ExportError: If it cannot.
    """
    if block_size != BLOCK:
        _check_wide(formats, profile, block_size)
    if profile == "float":
        _check_float(budget=budget, chosen=chosen)
    if profile == "native":
        _check_native(formats, budget=budget, packs=packs)
    if cuda:
        _check_cuda(formats, profile)
    if documents:
        _check_documents(formats, profile)


def _check_wide(formats: Collection[Format], profile: Profile, block_size: BlockSize) -> None:
    if profile == "float":
        raise ExportError("the profile float rounds nothing: leave --block-size out")
    if profile == "native" and "gguf" in formats:
        raise ExportError("native's GGUF has llama.cpp's own blocks: leave --block-size out")
    if "onnx" not in formats:
        raise ExportError(
            f"a GGUF has blocks of {BLOCK}, and is nearer to the float weights with a scale for "
            f"each than with one for {block_size} weights: ask for the format onnx too, or leave "
            "--block-size out"
        )


def _check_float(*, budget: bool, chosen: bool) -> None:
    if budget:
        raise ExportError(
            "the profile float has 32 bits everywhere: leave --bits and --target-size out"
        )
    if chosen:
        raise ExportError(
            "the profile float rounds nothing: leave --calibration and --quantizer out"
        )


def _check_native(formats: Collection[Format], *, budget: bool, packs: bool) -> None:
    if len(formats) != 1:
        raise ExportError(
            "native weights are one engine's, and so are the vectors that they make: ask for one "
            "format, or for the profile portable"
        )
    if budget and "gguf" in formats:
        raise ExportError("native's GGUF is llama.cpp's Q4_K_M: leave --bits and --target-size out")
    if not budget and "onnx" in formats:
        raise ExportError("native's ONNX gives 8 bits to some layers: say how many, --bits 5")
    if not packs and "gguf" in formats:
        raise ExportError(
            "the blocks of native's GGUF are rounded by llama.cpp's own search: leave --quantizer "
            "out"
        )


def _check_cuda(formats: Collection[Format], profile: Profile) -> None:
    if "onnx" not in formats:
        raise ExportError("the graph for CUDA reads ONNX's weights: ask for the format onnx")
    if profile == "float":
        raise ExportError(
            "the graph for CUDA computes in float16, and the profile float is a float32 reference: "
            "use --profile portable, or leave --cuda out"
        )


def _check_documents(formats: Collection[Format], profile: Profile) -> None:
    if "onnx" not in formats:
        raise ExportError("the graph for documents stands beside ONNX's: ask for the format onnx")
    if profile == "float":
        raise ExportError(
            "the graph for documents rounds to 8 bits, and the profile float rounds nothing: use "
            "--profile portable, or leave --documents out"
        )


def open_container(
    format: Format,
    directory: Path,
    decoder: Decoder,
    encodings: Mapping[str, Encoding],
    metadata: bytes,
    *,
    cuda: bool = False,
) -> ContainerWriter:
    """What writes a format's files.

    Args:
        format: Which.
        directory: Where the files go.
        decoder: The shape of the model.
        encodings: Block format by tensor name.
        metadata: What stands before the tensors of a GGUF.
        cuda: Write ONNX's graph for CUDA too.

    Raises:
        ExportError: If a file cannot be created.
    """
    if format == "onnx":
        from t1_edge_export.onnx_writer import OnnxContainer

        return OnnxContainer(directory, decoder, encodings, cuda=cuda)
    from t1_edge_export.gguf_writer import GGUFContainer, lay_out_gguf

    return GGUFContainer(directory, decoder, lay_out_gguf(decoder, encodings, metadata))


def read_back(
    format: Format, directory: Path, decoder: Decoder, encodings: Mapping[str, Encoding]
) -> Weights:
    """The weights that a format's engine will multiply with, from the files.

    Args:
        format: Which.
        directory: Where the files are.
        decoder: The shape of the model.
        encodings: Block format by tensor name.

    Raises:
        CheckpointError: If model.gguf is no whole GGUF.
    """
    if format == "onnx":
        from t1_edge_export.onnx_reader import OnnxWeights

        return OnnxWeights(directory, decoder, encodings)
    from t1_edge_export.gguf_checkpoint import GGUFCheckpoint

    return GGUFCheckpoint(directory / GGUF_MODEL)


def file_sizes(
    format: Format,
    decoder: Decoder,
    encodings: Mapping[str, Encoding],
    metadata: bytes,
    *,
    cuda: bool = False,
    longest_document: int | None = None,
) -> dict[str, int]:
    """Bytes of a format's files, by name.

    Args:
        format: Which.
        decoder: The shape of the model.
        encodings: Block format by tensor name.
        metadata: What stands before the tensors of a GGUF; as long as it will be.
        cuda: With ONNX's graph for CUDA.
        longest_document: With ONNX's graph for documents of so many tokens at most, and its
            weights.
    """
    if format == "onnx":
        from t1_edge_export.onnx_documents import (
            documents_graph,
            documents_size,
            lay_out_documents,
        )
        from t1_edge_export.onnx_graph import graph_over_weights
        from t1_edge_export.onnx_layout import lay_out
        from t1_edge_export.onnx_writer import graphs

        matrices = lay_out(decoder, encodings)
        norms = {
            spec.name: np.zeros(spec.shape, np.float32)
            for spec in tensors(decoder)
            if spec.role == "norm"
        }
        sizes = {
            name: graph_over_weights(decoder, matrices, norms, activations).ByteSize()
            for name, activations in graphs(cuda).items()
        }
        sizes[ONNX_WEIGHTS] = max(matrix.end for matrix in matrices.values())
        if longest_document is not None:
            graph = documents_graph(decoder, encodings, norms, longest_document)
            sizes[DOCUMENTS_GRAPH] = len(graph)
            sizes[DOCUMENTS_WEIGHTS] = documents_size(lay_out_documents(decoder))
        return sizes
    from t1_edge_export.gguf_writer import lay_out_gguf

    return {GGUF_MODEL: lay_out_gguf(decoder, encodings, metadata).size}
