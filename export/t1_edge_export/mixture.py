"""Q4_K_M: llama.cpp's mixture of block formats, with every block's values at 8 bits.

Of the MLP's output projections those have 6 bits that stand early, late, or third in a row; what
else multiplies has 4. Super-blocks are of 256 weights: where these do not divide a row, llama.cpp
takes blocks of 32 instead, with a bit or two more. Source: llama.cpp, src/llama-quant.cpp. Values,
of which its mixture has half at 6 bits, are few, and cost most when they are coarse (docs/LOG.md).
"""

from typing import Final

from t1_edge.build import Decoder
from t1_edge_export.containers import Encoding
from t1_edge_export.decoder import TensorSpec, layer_tensors, projection

_SUPER_BLOCK: Final = 256


def mixture(decoder: Decoder) -> dict[str, Encoding]:
    """Block format of every linear layer, by tensor name."""
    return {
        spec.name: _encoding(spec, layer, decoder.layers)
        for layer in range(decoder.layers)
        for spec in layer_tensors(decoder, layer)
        if spec.role == "linear"
    }


def _encoding(spec: TensorSpec, layer: int, layers: int) -> Encoding:
    part, divided = projection(spec.name), spec.shape[1] % _SUPER_BLOCK == 0
    if part == "v_proj":
        return "q8_0"
    if part == "down_proj" and _counts_more(layer, layers):
        return "q6_k" if divided else "q8_0"
    return "q4_k" if divided else "q5_0"


def _counts_more(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
