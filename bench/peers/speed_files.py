"""What the contestants of `peers.speed` run: nano's weights, once for each, kept between runs.

t1-edge runs nano as it ships, but for what ends a thought. Its own thoughts close after four or
five tokens, and no other engine would stop at the same one. So the build is exported with another
contract: `think_close` is a token of the checkpoint that the model was never shown in training and
does not write, nothing stops a thought, and tokens may repeat, as in plain greedy writing. What
nano would close a thought with is then a token like others, and every thought has as many tokens as
its budget. Documents, and the fingerprint, are nano's own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from peers.int4 import BUILDER_GRAPH, quantize_by_builder, quantize_by_llama_cpp
from t1_edge import __version__
from t1_edge.build import GGUF_MODEL, Build
from t1_edge.contract import Contract
from t1_edge.errors import BuildError
from t1_edge_export.checkpoint import Checkpoint
from t1_edge_export.models import MODELS
from t1_edge_export.pipeline import export
from t1_edge_export.presets import PRESETS
from t1_edge_export.request import Request

_NANO: Final = MODELS["nano"]

ENDLESS: Final[Contract] = msgspec.structs.replace(
    PRESETS["nano"],
    think_close="<empty_output>",
    adds=("<think>", "<emb_token>"),
    stop=(),
    distinct=False,
)
"""nano's contract, without an end to a thought but the budget's."""

_WHOLE: Final = "whole"
"""Stands in a folder that a peer has filled."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """The same weights, as each engine takes them.

    Attributes:
        checkpoint: The float weights.
        build: t1-edge's, in both formats.
        gguf: llama.cpp's Q4_0.
        graph: The builder's int4.
    """

    checkpoint: Checkpoint
    build: Build
    gguf: Path
    graph: Path


def make(work: Path, *, four_bit: bool, say: Callable[[str], None]) -> Files:
    """Make what is not there yet.

    Args:
        work: Where environments and files go; files of other weights than nano's now lie apart.
        four_bit: All of t1-edge's linear layers have 4 bits, and none has 8.
        say: Called with a line of talk.

    Raises:
        click.ClickException: If a peer fails.
        T1Error: If an export does.
    """
    checkpoint = _NANO.open(say)
    folder = work / "speed" / checkpoint.source().sha256[:12]
    request = replace(_NANO.request(checkpoint, ("onnx", "gguf")), contract=ENDLESS)
    small = replace(request, budget=None, destination=folder / "four-bit")
    build = _kept(checkpoint, small if four_bit else replace(request, destination=folder / "nano"))
    return Files(
        checkpoint=checkpoint,
        build=build,
        gguf=_gguf(checkpoint, folder, work),
        graph=_graph(checkpoint, folder, work),
    )


def _kept(checkpoint: Checkpoint, request: Request) -> Build:
    """The build of an earlier run, or a new one."""
    try:
        found = Build(request.destination)
    except BuildError:
        return export(checkpoint, request)
    same = found.manifest.contract == request.contract and found.has_documents_graph
    if same and found.manifest.tools.get("t1-edge") == __version__:
        return found
    return export(checkpoint, request)


def _gguf(checkpoint: Checkpoint, folder: Path, work: Path) -> Path:
    out = folder / "llama.cpp"
    if not (out / _WHOLE).exists():
        quantize_by_llama_cpp(checkpoint, out, work)
        (out / _WHOLE).touch()
    return out / GGUF_MODEL


def _graph(checkpoint: Checkpoint, folder: Path, work: Path) -> Path:
    out = folder / "builder, without a head"
    if not (out / _WHOLE).exists():
        quantize_by_builder(checkpoint, out, work, head=False)
        (out / _WHOLE).touch()
    return out / BUILDER_GRAPH
