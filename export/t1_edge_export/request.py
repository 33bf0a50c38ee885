"""What an export is asked for, and what is refused before a weight is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from t1_edge.build import Format, Profile
from t1_edge.contract import Contract
from t1_edge.engines.opening import require
from t1_edge_export.checkpoint import Checkpoint
from t1_edge_export.containers import Encoding
from t1_edge_export.formats import check_profile, choose_encodings, require_writer
from t1_edge_export.gguf_metadata import gguf_metadata
from t1_edge_export.precision import Budget, find_limit
from t1_edge_export.quantize.quantizer import SEARCH, Quantizer
from t1_edge_export.staging import check_free, check_unlocked


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to export.

    Attributes:
        name: Name of the build.
        destination: The directory to publish.
        contract: How text becomes tokens and a vector.
        formats: Engines to write for.
        profile: How to quantize.
        quantizer: How the linear layers are rounded; a new one for each export.
        budget: What the build may take: the linear layers that lose most to 4 bits get 8, as many
            as fit. All of them have 4 if None.
        cuda: Write ONNX's graph for CUDA too. The gate does not run it.
        documents: Write ONNX's graph for documents too, whose weights are as large again and more.
        force: Replace a build that stands at the destination.
        resume: Go on where an export that was interrupted stood; if None, where that was of the
            same request.
        allow_drift: Publish a build that misses the gate's bounds, and say so in its manifest.
    """

    name: str
    destination: Path
    contract: Contract
    formats: Sequence[Format] = ("onnx", "gguf")
    profile: Profile = "portable"
    quantizer: Quantizer = SEARCH
    budget: Budget | None = None
    cuda: bool = False
    documents: bool = False
    force: bool = False
    resume: bool | None = False
    allow_drift: bool = False

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
        text, source = checkpoint.tokenizer, checkpoint.source
        return gguf_metadata(checkpoint.decoder, encodings, text, self.name, source)


def check_request(checkpoint: Checkpoint, request: Request) -> None:
    """Whether what is asked for can be made of a checkpoint, given disk and memory.

    Args:
        checkpoint: The float weights, with the contract's tokens.
        request: What to make of them.

    Raises:
        CheckpointError: If the profile cannot hold the checkpoint.
        ExportError: If the destination exists, another process is writing it, the profile cannot
            hold what is asked for, the budget cannot be met, or llama.cpp does not know the
            tokenizer.
        MissingExtraError: If a format's engine, which has to verify it, is not installed, or what
            writes it.
    """
    check_profile(
        request.profile,
        request.formats,
        budget=request.budget is not None,
        chosen=bool(request.quantizer.calibration),
        packs=request.quantizer.packed is not None,
        cuda=request.cuda,
        documents=request.documents,
    )
    for format in request.formats:
        require(format)
        require_writer(format)
    check_free(request.destination, request.force)
    check_unlocked(request.destination)
    encodings = choose_encodings(checkpoint.decoder, request.profile, request.formats)
    metadata = request.metadata(checkpoint, encodings)
    if request.budget:
        find_limit(request.budget, checkpoint.decoder, request.profile, request.formats, metadata)
