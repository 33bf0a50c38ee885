"""t1-edge: a thinking text encoder on the machine in front of you.

>>> from t1_edge import Encoder
>>> encoder = Encoder.load("smollm2-135m")  # a cached build's name, or a path
>>> query = encoder.encode_query("why do leaves turn red", budget=16)
>>> vectors = encoder.encode_documents(["Chlorophyll breaks down in autumn."])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from t1_edge.errors import T1Error

if TYPE_CHECKING:
    from t1_edge.encoder import DocumentEmbeddings, Encoder, QueryEmbedding

__version__ = "0.1.0"
__all__ = ["DocumentEmbeddings", "Encoder", "QueryEmbedding", "T1Error", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the encoder, and with it numpy, when it is first asked for."""
    if name in ("DocumentEmbeddings", "Encoder", "QueryEmbedding"):
        return getattr(import_module("t1_edge.encoder"), name)
    raise AttributeError(f"module 't1_edge' has no attribute {name!r}")
