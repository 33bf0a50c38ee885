"""The devices that ONNX Runtime drives a build's graphs on, and how it knows them."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from t1_edge.build import CUDA_GRAPH, DOCUMENTS_GRAPH, ONNX_GRAPH


@dataclass(frozen=True, kw_only=True)
class Place:
    """A device, as ONNX Runtime knows it.

    Attributes:
        device: As t1-edge names it.
        provider: What runs the graph there.
        memory: Where its KV cache lies.
        graph: The build's file for it.
        cache: Type of the KV cache, which is that of the graph's activations.
        reads: What the graph is for: "everything", or "documents" alone.
        skips: Whether its kernels take a head over no rows; not where nobody has seen them do so.
    """

    device: str
    provider: str
    memory: str
    graph: str
    cache: "np.dtype[np.floating[Any]]"
    reads: str = "everything"
    skips: bool = False


PLACES: Final = {
    "cpu": Place(
        device="cpu",
        provider="CPUExecutionProvider",
        memory="cpu",
        graph=ONNX_GRAPH,
        cache=np.dtype(np.float32),
        skips=True,
    ),
    "cuda": Place(
        device="cuda",
        provider="CUDAExecutionProvider",
        memory="cuda",
        graph=CUDA_GRAPH,
        cache=np.dtype(np.float16),
    ),
    "webgpu": Place(
        device="webgpu",
        provider="WebGpuExecutionProvider",
        memory="webgpu",
        graph=ONNX_GRAPH,
        cache=np.dtype(np.float32),
    ),
}
"""By device; of the last, `t1_edge.engines.webgpu` has what it must not be asked."""

READER: Final = Place(
    device="cpu",
    provider="CPUExecutionProvider",
    memory="cpu",
    graph=DOCUMENTS_GRAPH,
    cache=np.dtype(np.float32),
    reads="documents",
)
"""The graph that reads documents and writes nothing: it has no logits."""
