"""The build directory: what `t1.json` says, and whether the files are what it says.

The format is described in docs/build-format.md. A build is opened without reading its weights:
sizes are compared on every open, hashes when a build is verified.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Final, Literal

import msgspec

from t1_edge.contract import Contract
from t1_edge.errors import BuildError, ContractError
from t1_edge.verification import Verification

SCHEMA: Final = 6
MAX_CONTEXT: Final = 8192
MANIFEST: Final = "t1.json"
TOKENIZER: Final = "tokenizer.json"
GOLDEN: Final = "golden.npz"
ONNX_GRAPH: Final = "model.onnx"
ONNX_WEIGHTS: Final = "weights.bin"
CUDA_GRAPH: Final = "model.cuda.onnx"
DOCUMENTS_GRAPH: Final = "model.documents.onnx"
DOCUMENTS_WEIGHTS: Final = "documents.bin"
GGUF_MODEL: Final = "model.gguf"

Format = Literal["onnx", "gguf"]
Profile = Literal["portable", "native", "float"]

_FILES: Final[Mapping[Format, tuple[str, ...]]] = {
    "onnx": (ONNX_GRAPH, ONNX_WEIGHTS),
    "gguf": (GGUF_MODEL,),
}
"""What an engine of a format reads on a CPU."""


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the weights come from.

    Attributes:
        id: Name of the checkpoint, as its publisher spells it.
        revision: Commit on the Hugging Face hub that was read; empty if it came from elsewhere.
        sha256: Hash of the file, or of the shards' hashes in order.
        licence: SPDX identifier, or "unknown".
        note: What a reader should know of these weights.
    """

    id: str
    revision: str = ""
    sha256: str
    licence: str = "unknown"
    note: str = ""


# Far above any decoder's: a damaged file must not have us list a billion tensors.
_Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
_Layers = Annotated[int, msgspec.Meta(ge=1, le=1 << 12)]
_Positive = Annotated[float, msgspec.Meta(gt=0, le=1e12)]

_GGUF_ROWS: Final = 32


class Decoder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shape of a decoder.

    Attributes:
        family: "llama" or "qwen3".
        hidden: Width of the residual stream; the dimensions of a vector.
        layers: Number of blocks.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Width of a head; heads * head_dim need not be `hidden`.
        intermediate: Width of the gated MLP.
        vocabulary: Rows of the embedding.
        positions: Longest row the model was made for, in tokens.
        rope_theta: Base of the rotary frequencies (RoFormer, arXiv 2104.09864).
        norm_epsilon: Epsilon of every RMS norm.
        tied: Whether the head is the embedding.
    """

    family: Literal["llama", "qwen3"]
    hidden: _Size
    layers: _Layers
    heads: _Size
    kv_heads: _Size
    head_dim: _Size
    intermediate: _Size
    vocabulary: _Size
    positions: _Size
    rope_theta: _Positive
    norm_epsilon: _Positive
    tied: bool

    @property
    def qk_norm(self) -> bool:
        """Whether each query and key head is RMS-normed before the rotation."""
        return self.family == "qwen3"

    @property
    def padded_vocabulary(self) -> int:
        """Rows of the embedding in a GGUF; those behind the vocabulary are zeros.

        llama.cpp packs a matrix for a processor's kernels where they divide its rows: by 8, or for
        AMX by 32 (ggml's `ggml-cpu/repack.cpp` and `ggml-cpu/amx`).
        """
        return -(-self.vocabulary // _GGUF_ROWS) * _GGUF_ROWS

    @property
    def context(self) -> int:
        """Longest row that a build is written for, in tokens: a rotary table ends somewhere."""
        return min(self.positions, MAX_CONTEXT)


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of the build: its size in bytes and its sha256."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The contents of `t1.json`.

    Attributes:
        schema: Version of this format.
        name: Name of the build.
        profile: How the weights were quantized.
        source: Where they come from.
        decoder: The shape of the model.
        contract: How text becomes tokens and a vector.
        formats: Engines' files that the build holds.
        encodings: How many tensors were written in which block format, by its name.
        eight_bit: Linear layers' tensors that have 8 bits since fewer would cost them most, by
            name; the embedding and the head, which always have 8 but in `float`, are not among
            them.
        calibration: What the errors of rounded weights were weighed with; empty if with nothing.
        files: Every file but `t1.json`, by its path relative to the build.
        fingerprint: Hash of everything that changes a document vector.
        verification: What the gate measured.
        tools: Versions of what wrote the build.
    """

    schema: int
    name: str
    profile: Profile
    source: Source
    decoder: Decoder
    contract: Contract
    formats: tuple[Format, ...]
    encodings: dict[str, int]
    eight_bit: tuple[str, ...]
    calibration: str
    files: dict[str, FileEntry]
    fingerprint: str
    verification: Verification
    tools: dict[str, str]

    def to_json(self) -> bytes:
        """The bytes of `t1.json`: indented, keys in the order of the fields."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


class Build:
    """An opened build directory.

    Args:
        path: The directory.

    Raises:
        BuildError: If it is not a build, is of another schema, lacks a file, or a file's size is
            not what the manifest says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = _read_manifest(path)
        for name, entry in self.manifest.files.items():
            _check_size(self.file(name), entry.size)

    def file(self, name: str) -> Path:
        """Path of one of the build's files."""
        return self.path / name

    def size(self, format: Format) -> int:
        """Bytes of weights and graph that an engine of this format reads."""
        return sum(self.manifest.files[name].size for name in _FILES[format])

    @property
    def has_cuda_graph(self) -> bool:
        """Whether a graph for CUDA is over the ONNX weights."""
        return CUDA_GRAPH in self.manifest.files

    @property
    def has_documents_graph(self) -> bool:
        """Whether a graph for reading documents stands beside the ONNX weights."""
        return DOCUMENTS_GRAPH in self.manifest.files

    def state(self) -> str:
        """A hash that changes with the manifest and with any file's time, none of them read."""
        times = [self.file(name).stat().st_mtime_ns for name in self.manifest.files]
        manifest = (self.path / MANIFEST).read_bytes()
        return hashlib.sha256(manifest + msgspec.json.encode(times)).hexdigest()[:32]

    def check_hashes(self) -> None:
        """Read every file whole and compare its sha256.

        Raises:
            BuildError: Naming the first file that differs.
        """
        for name, entry in self.manifest.files.items():
            try:
                found = sha256_file(self.file(name))
            except OSError as e:
                raise BuildError(f"{self.file(name)} cannot be read: {e.strerror}") from e
            if found != entry.sha256:
                raise BuildError(
                    f"{self.file(name)} is damaged: sha256 is {found[:12]}…, "
                    f"{MANIFEST} says {entry.sha256[:12]}…; export or pull the build again"
                )


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_entry(path: Path) -> FileEntry:
    """The manifest's entry for a file that was just written."""
    return FileEntry(size=path.stat().st_size, sha256=sha256_file(path))


def fingerprint(
    weights: str, tokenizer: str, contract: Contract, decoder: Decoder, documents: str = ""
) -> str:
    """Hash of everything that changes a document vector.

    Args:
        weights: sha256 over the quantized tensors, container aside: the ONNX and the GGUF of a
            portable build hold the same weights and so share a fingerprint.
        tokenizer: sha256 of tokenizer.json.
        contract: Of which the document's part counts.
        decoder: The shape of the model; the same weights give other vectors in another.
        documents: sha256 of documents.bin; empty without one.

    Returns:
        32 hex digits.
    """
    shape = msgspec.json.encode(decoder).decode()
    texts = [weights, tokenizer, contract.document, contract.emb_token]
    parts = [*texts, str(contract.max_document_tokens), shape, *([documents] if documents else [])]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _read_manifest(path: Path) -> Manifest:
    where = path / MANIFEST
    try:
        raw = where.read_bytes()
    except OSError as e:
        raise BuildError(f"{path} is no build: it has no readable {MANIFEST} ({e.strerror})") from e
    _check_schema(raw, where)
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, ContractError) as e:
        raise BuildError(f"{where} is damaged: {e}") from e
    for name in manifest.files:
        _check_inside(name, where)
    _check_whole(manifest, where)
    return manifest


def _check_whole(manifest: Manifest, where: Path) -> None:
    """Whether what a format needs is listed: files that are used are files that are checked."""
    if not manifest.formats:
        raise BuildError(f"{where} is damaged: it names no format")
    needed = {TOKENIZER, GOLDEN}.union(*(_FILES[format] for format in manifest.formats))
    if CUDA_GRAPH in manifest.files:
        needed.add(ONNX_WEIGHTS)
    if DOCUMENTS_GRAPH in manifest.files:
        needed |= {ONNX_WEIGHTS, DOCUMENTS_WEIGHTS}
    missing = needed - manifest.files.keys()
    if missing:
        raise BuildError(f"{where} is damaged: it does not list {min(missing)}")
    unmeasured = set(manifest.formats) - manifest.verification.engines.keys()
    if unmeasured:
        raise BuildError(f"{where} is damaged: it has no figures of {min(unmeasured)}")


def _check_schema(raw: bytes, where: Path) -> None:
    """The version is looked at first, so that a newer build gives no list of odd fields."""
    try:
        found = msgspec.json.decode(raw).get("schema")
    except (msgspec.MsgspecError, AttributeError, UnicodeDecodeError) as e:
        raise BuildError(f"{where} is damaged: {e}") from e
    if found != SCHEMA:
        raise BuildError(
            f"{where} has schema {found!r}, this t1-edge reads {SCHEMA}: "
            "export the build again (`t1-edge pull` where that brought it), or install the t1-edge "
            "that wrote it"
        )


def _check_inside(name: str, where: Path) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise BuildError(f"{where} names a file outside the build: {name!r}")


def _check_size(path: Path, size: int) -> None:
    if not path.is_file():
        raise BuildError(f"{path} is missing; export or pull the build again")
    found = path.stat().st_size
    if found != size:
        raise BuildError(
            f"{path} is damaged: it has {found:,} bytes, {MANIFEST} says {size:,}; "
            "export or pull the build again"
        )
