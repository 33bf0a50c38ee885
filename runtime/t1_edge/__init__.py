"""t1-edge: a thinking text encoder on the machine in front of you.

>>> from t1_edge import Encoder
>>> encoder = Encoder.load("nano")  # a cached build's name, or a path
>>> query = encoder.encode_query("why do leaves turn red", budget=16)
>>> vectors = encoder.encode_documents(["Chlorophyll breaks down in autumn."])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from t1_edge.errors import T1Error

if TYPE_CHECKING:
    from t1_edge.encoder import Encoder
    from t1_edge.results import DocumentEmbeddings, QueryEmbedding
    from t1_edge.thinking import Settle

__version__ = "0.1.0"
__all__ = [
    "DocumentEmbeddings",
    "Encoder",
    "QueryEmbedding",
    "Settle",
    "T1Error",
    "__version__",
]

_HOMES = {
    "DocumentEmbeddings": "t1_edge.results",
    "Encoder": "t1_edge.encoder",
    "QueryEmbedding": "t1_edge.results",
    "Settle": "t1_edge.thinking",
}


def __dir__() -> list[str]:
    """What there is, also what is imported when it is first asked for."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import the encoder, and with it numpy, when it is first asked for."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 't1_edge' has no attribute {name!r}")
