"""What an export is asked for, and what is refused before one is rounded."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from t1_edge import __version__
from t1_edge.build import Decoder, Format, Profile
from t1_edge.contract import Contract
from t1_edge.engines.opening import require
from t1_edge_export.bars import Bars, no_bars
from t1_edge_export.checkpoint import Checkpoint
from t1_edge_export.containers import BLOCK, BlockSize, Encoding
from t1_edge_export.formats import check_profile, choose_encodings, require_writer
from t1_edge_export.gguf_metadata import gguf_metadata
from t1_edge_export.onnx_layout import LAYOUT
from t1_edge_export.precision import Budget, Limit, find_limit
from t1_edge_export.quantize.calibration import Calibration
from t1_edge_export.staging import check_free, check_left, check_unlocked


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to export.

    Attributes:
        name: Name of the build.
        destination: The directory to publish.
        contract: How text becomes tokens and a vector.
        formats: Engines to write for.
        profile: How to quantize.
        calibration: How the linear layers are rounded. The quantizer is fitted once no other
            process can export to the destination.
        budget: What the build may take: the linear layers that lose most to 4 bits get 8, as many
            as fit. All of them have 4 if None.
        block_size: Weights that share a scale. Wider blocks are smaller and faster in ONNX Runtime,
            and further from the float weights (docs/export.md).
        cuda: Write ONNX's graph for CUDA too. The gate does not run it.
        documents: Write ONNX's graph for documents too, whose weights are as large again and more.
        force: Replace a build that stands at the destination.
        resume: Go on where an export that was interrupted stood; if None, where that was of the
            same request.
        ignore_engine_memory: Begin though the engines that verify seem not to fit into memory.
        allow_drift: Publish a build that misses the gate's bounds, and say so in its manifest.
    """

    name: str
    destination: Path
    contract: Contract
    formats: Sequence[Format] = ("onnx", "gguf")
    profile: Profile = "portable"
    calibration: Calibration = field(default_factory=Calibration)
    budget: Budget | None = None
    block_size: BlockSize = BLOCK
    cuda: bool = False
    documents: bool = False
    force: bool = False
    resume: bool | None = False
    ignore_engine_memory: bool = False
    allow_drift: bool = False

    def encodings(self, decoder: Decoder, eight_bit: Iterable[str] = ()) -> dict[str, Encoding]:
        """Block format by tensor name.

        Args:
            decoder: The shape of the model.
            eight_bit: Linear layers that have 8 bits, whatever the profile says.

        Raises:
            CheckpointError: If the blocks of a format do not divide a tensor.
        """
        return choose_encodings(
            decoder, self.profile, self.formats, eight_bit, block_size=self.block_size
        )

    def limit(self, decoder: Decoder, metadata: bytes) -> Limit | None:
        """What the budget means for a decoder; None without one.

        Args:
            decoder: The shape of the model.
            metadata: What stands before the tensors of a GGUF; as long as it will be.

        Raises:
            CheckpointError: If blocks do not divide a tensor.
            ExportError: If all layers at 4 bits are above the budget, or all at 8 below it.
        """
        if self.budget is None:
            return None
        return find_limit(
            self.budget, decoder, self.profile, self.formats, metadata, block_size=self.block_size
        )

    def metadata(self, checkpoint: Checkpoint, encodings: Mapping[str, Encoding]) -> bytes:
        """What stands before the tensors of the GGUF; empty if there is to be none.

        Args:
            checkpoint: The float weights, with the contract's tokens.
            encodings: Block format by tensor name.

        Raises:
            ExportError: If llama.cpp does not know the tokenizer.
        """
        if "gguf" not in self.formats:
            return b""
        text, origin = checkpoint.tokenizer, checkpoint.origin
        return gguf_metadata(checkpoint.decoder, encodings, text, self.name, origin)

    def digest(self, checkpoint: Checkpoint, bars: Bars) -> str:
        """Changes with all that decides the bytes of a build, but what its rounding is fitted to.

        Args:
            checkpoint: The float weights, with the contract's tokens; their bytes are hashed.
            bars: Shows how far that is.
        """
        source = checkpoint.source(bars)
        parts = [
            __version__,
            str(LAYOUT),
            msgspec.json.encode(source).decode(),  # a GGUF says where it comes from
            checkpoint.tokenizer,
            msgspec.json.encode(self.contract).decode(),
            self.name,
            self.profile,
            *self.formats,
            str(self.cuda),
            str(self.documents),
            str(self.budget),
            str(self.block_size),
        ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def check_request(checkpoint: Checkpoint, request: Request, *, bars: Bars = no_bars) -> None:
    """Whether what is asked for can be made of a checkpoint, given disk and memory.

    Args:
        checkpoint: The float weights, with the contract's tokens; their bytes are hashed if there
            is something to resume.
        request: What to make of them.
        bars: Shows how far that is.

    Raises:
        CheckpointError: If the profile cannot hold the checkpoint.
        ExportError: If the destination exists, another process is writing it, what is to be
            resumed is of something else, the profile cannot hold what is asked for, the budget
            cannot be met, or llama.cpp does not know the tokenizer.
        MissingExtraError: If a format's engine, which has to verify it, is not installed, or what
            writes it.
    """
    check_profile(
        request.profile,
        request.formats,
        budget=request.budget is not None,
        chosen=request.calibration.chosen,
        packs=request.calibration.packs,
        cuda=request.cuda,
        documents=request.documents,
        block_size=request.block_size,
    )
    for format in request.formats:
        require(format)
        require_writer(format)
    check_free(request.destination, request.force)
    check_unlocked(request.destination)
    encodings = request.encodings(checkpoint.decoder)
    metadata = request.metadata(checkpoint, encodings)
    request.limit(checkpoint.decoder, metadata)
    if request.resume:
        check_left(request.destination, partial(request.digest, checkpoint, bars))
