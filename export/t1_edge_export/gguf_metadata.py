"""What stands before the data of a GGUF: the model's shape, its tokenizer, where tensors lie."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from t1_edge.build import Decoder
from t1_edge_export.checkpoint import Origin
from t1_edge_export.containers import Encoding, aligned, as_stored_in_gguf, bits
from t1_edge_export.decoder import TensorSpec, linear_layers, tensors
from t1_edge_export.gguf_checkpoint import VOCABULARY, gguf_names
from t1_edge_export.gguf_tokenizer import gguf_tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

ALIGNMENT: Final = 32
"""Bytes: every tensor begins at a multiple of it (the format's default)."""

_FILE_TYPES: Final[Mapping[Encoding, str]] = {
    "f32": "ALL_F32",
    "q4_0": "MOSTLY_Q4_0",
    "q8_0": "MOSTLY_Q8_0",
    "q5_0": "MOSTLY_Q4_K_M",  # which it is part of, where rows are too narrow for q4_k
    "q4_k": "MOSTLY_Q4_K_M",
    "q6_k": "MOSTLY_Q4_K_M",
}
_END_TOKENS: Final = ("<|im_end|>", "<|endoftext|>")
"""What ends a turn in the families that are written, the first that exists."""


def gguf_metadata(
    decoder: Decoder,
    encodings: Mapping[str, Encoding],
    tokenizer: str,
    name: str,
    origin: Origin,
) -> bytes:
    """The bytes before the first tensor's.

    Args:
        decoder: The shape of the model.
        encodings: Block format by tensor name.
        tokenizer: The text of tokenizer.json.
        name: Name of the build.
        origin: Where the weights come from.

    Returns:
        A multiple of `ALIGNMENT` bytes.

    Raises:
        ExportError: If llama.cpp does not know the tokenizer.
    """
    import gguf

    with tempfile.TemporaryDirectory() as folder:  # the writer knows files alone
        path = Path(folder, "metadata.gguf")
        writer = gguf.GGUFWriter(path, decoder.family)
        _describe(writer, decoder, encodings, name, origin)
        _describe_tokenizer(writer, tokenizer, decoder.padded_vocabulary)
        _announce(writer, decoder, encodings)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        found = path.read_bytes()
    return found.ljust(aligned(len(found), ALIGNMENT), b"\0")


def stored_tensors(decoder: Decoder) -> Iterator[TensorSpec]:
    """Every tensor of a decoder, with the rows that it has in the file, in the order it has there.

    See `Decoder.padded_vocabulary`.
    """
    return tensors(msgspec.structs.replace(decoder, vocabulary=decoder.padded_vocabulary))


def tensor_bytes(spec: TensorSpec, encoding: Encoding) -> int:
    """Size of a tensor in the file, in bytes."""
    return int(spec.size * bits(as_stored_in_gguf(encoding))) // 8


def _describe(
    writer: "GGUFWriter",
    decoder: Decoder,
    encodings: Mapping[str, Encoding],
    name: str,
    origin: Origin,
) -> None:
    import gguf

    writer.add_name(name)
    writer.add_source_url(origin.id)
    writer.add_license(origin.licence)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    linear = Counter(as_stored_in_gguf(encodings[spec.name]) for spec in linear_layers(decoder))
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[linear.most_common(1)[0][0]]])
    writer.add_block_count(decoder.layers)
    writer.add_context_length(decoder.positions)
    writer.add_embedding_length(decoder.hidden)
    writer.add_feed_forward_length(decoder.intermediate)
    writer.add_head_count(decoder.heads)
    writer.add_head_count_kv(decoder.kv_heads)
    writer.add_key_length(decoder.head_dim)
    writer.add_value_length(decoder.head_dim)
    writer.add_rope_dimension_count(decoder.head_dim)
    writer.add_rope_freq_base(decoder.rope_theta)
    writer.add_layer_norm_rms_eps(decoder.norm_epsilon)
    writer.add_vocab_size(decoder.padded_vocabulary)
    writer.add_uint32(VOCABULARY, decoder.vocabulary)


def _describe_tokenizer(writer: "GGUFWriter", definition: str, vocabulary: int) -> None:
    found = gguf_tokenizer(definition, vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list(list(found.tokens))
    writer.add_token_types(list(found.token_types))
    writer.add_token_merges(list(found.merges))
    writer.add_add_bos_token(False)
    ends = [found.tokens.index(token) for token in _END_TOKENS if token in found.tokens]
    if ends:
        writer.add_eos_token_id(ends[0])
        writer.add_pad_token_id(ends[-1])


def _announce(writer: "GGUFWriter", decoder: Decoder, encodings: Mapping[str, Encoding]) -> None:
    """Tensor infos stand before all data."""
    import gguf

    names = gguf_names(decoder)
    for spec in stored_tensors(decoder):
        encoding = as_stored_in_gguf(encodings[spec.name])
        size = tensor_bytes(spec, encoding)
        dtype: Any = np.float32 if encoding == "f32" else np.uint8
        shape = spec.shape if encoding == "f32" else (spec.shape[0], size // spec.shape[0])
        kind = gguf.GGMLQuantizationType[encoding.upper()]
        writer.add_tensor_info(names[spec.name], shape, np.dtype(dtype), size, kind)
