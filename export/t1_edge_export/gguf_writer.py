"""The GGUF container: model.gguf, written a slab at a time."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from t1_edge.build import GGUF_MODEL, Decoder, Source
from t1_edge.errors import ExportError
from t1_edge_export.containers import BLOCK, Encoding, Slab
from t1_edge_export.decoder import TensorSpec, tensors
from t1_edge_export.gguf_checkpoint import gguf_names, rotated_heads, stored_rows
from t1_edge_export.gguf_tokenizer import gguf_tokenizer

_TYPES: Final[Mapping[Encoding, str]] = {"f32": "F32", "q4_0": "Q4_0", "q8_0": "Q8_0"}
_FILE_TYPES: Final[Mapping[Encoding, str]] = {
    "f32": "ALL_F32",
    "q4_0": "MOSTLY_Q4_0",
    "q8_0": "MOSTLY_Q8_0",
}
_BLOCK_BYTES: Final[Mapping[Encoding, int]] = {"f32": 4 * BLOCK, "q4_0": 18, "q8_0": 34}
_END_TOKENS: Final = ("<|im_end|>", "<|endoftext|>")
"""What ends a turn in the families that are written, the first that exists."""


def pack(slab: Slab) -> NDArray[np.uint8]:
    """Rows as GGUF stores them, uint8 [rows, bytes].

    A Q4_0 block is its float16 scale and 16 bytes, byte j holding code j in its low half and code
    j + 16 in its high half; a Q8_0 block is its scale and 32 signed bytes. Source: ggml's
    block_q4_0 and block_q8_0.
    """
    if slab.scales is None:
        values = np.ascontiguousarray(slab.codes, "<f4")
        return values.reshape(len(values), -1).view(np.uint8)
    blocks = slab.codes.reshape(*slab.scales.shape, BLOCK)
    if slab.encoding == "q4_0":
        blocks = blocks[..., : BLOCK // 2] | blocks[..., BLOCK // 2 :] << 4
    scales = slab.scales.astype("<f2")[..., None].view(np.uint8)
    return np.concatenate([scales, blocks.view(np.uint8)], axis=-1).reshape(len(blocks), -1)


class GGUFContainer:
    """Writes model.gguf. See `ContainerWriter`.

    Args:
        directory: Where the file goes.
        decoder: The shape of the model.
        tokenizer: The text of tokenizer.json.
        name: Name of the build.
        encodings: Block format by tensor name.
        source: Where the weights come from.

    Raises:
        ExportError: If the file cannot be created, or llama.cpp does not know the tokenizer.
    """

    def __init__(
        self,
        directory: Path,
        decoder: Decoder,
        tokenizer: str,
        name: str,
        encodings: Mapping[str, Encoding],
        source: Source,
    ) -> None:
        import gguf

        self._decoder = decoder
        self._path = directory / GGUF_MODEL
        self._due: Iterator[TensorSpec] = tensors(decoder)
        self._current: TensorSpec | None = next(self._due)
        self._row = 0
        self._writer = gguf.GGUFWriter(self._path, decoder.family)
        self._describe(name, source, encodings)
        self._describe_tokenizer(tokenizer)
        self._announce(encodings)
        try:
            self._writer.write_header_to_file()
            self._writer.write_kv_data_to_file()
            self._writer.write_ti_data_to_file()
        except OSError as e:
            raise self._failed(e) from e
        self._file: BinaryIO = self._writer.fout[0]
        self._pad()

    def write(self, slab: Slab) -> None:
        """Append the next slab."""
        spec = self._current
        if spec is None or (slab.spec.name, slab.start) != (spec.name, self._row):
            raise ExportError(f"{slab.spec.name}: rows from {slab.start} are not what follows")
        order = stored_rows(rotated_heads(spec.name, self._decoder), len(slab.codes), inverse=True)
        try:
            pack(slab)[order].tofile(self._file)
        except OSError as e:
            raise self._failed(e) from e
        self._row += len(slab.codes)
        if self._row == spec.shape[0]:
            self._pad()
            self._current, self._row = next(self._due, None), 0

    def finish(self) -> tuple[str, ...]:
        """Close the file, and name it."""
        if self._current is not None:
            raise ExportError(f"{self._current.name} is not whole")
        self._writer.close()
        return (GGUF_MODEL,)

    def abort(self) -> None:
        """Close the file of an export that failed."""
        if self._writer.fout:
            self._writer.close()

    def _describe(self, name: str, source: Source, encodings: Mapping[str, Encoding]) -> None:
        import gguf

        decoder, writer = self._decoder, self._writer
        writer.add_name(name)
        writer.add_source_url(source.id)
        writer.add_license(source.licence)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        widest = encodings[next(s.name for s in tensors(decoder) if s.role == "linear")]
        writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[widest]])
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
        writer.add_vocab_size(decoder.vocabulary)

    def _describe_tokenizer(self, definition: str) -> None:
        found = gguf_tokenizer(definition, self._decoder.vocabulary)
        writer = self._writer
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

    def _announce(self, encodings: Mapping[str, Encoding]) -> None:
        """Tensor infos stand before all data."""
        import gguf

        names = gguf_names(self._decoder)
        for spec in tensors(self._decoder):
            encoding = encodings[spec.name]
            count = int(np.prod(spec.shape))
            dtype: Any = np.float32 if encoding == "f32" else np.uint8
            size = count // BLOCK * _BLOCK_BYTES[encoding] if encoding != "f32" else count * 4
            row_bytes = size // spec.shape[0]
            shape = spec.shape if encoding == "f32" else (spec.shape[0], row_bytes)
            kind = gguf.GGMLQuantizationType[_TYPES[encoding]]
            self._writer.add_tensor_info(names[spec.name], shape, np.dtype(dtype), size, kind)

    def _pad(self) -> None:
        self._writer.write_padding(self._file, self._file.tell())

    def _failed(self, error: OSError) -> ExportError:
        return ExportError(f"cannot write {self._path}: {error.strerror}; is the disk full?")
