"""The ONNX graph of a decoder, in the operators that ONNX Runtime runs fastest.

A graph for each type of activations, over the same weights.bin: float32 for the CPU, float16 for
CUDA, whose attention knows no float32. Beside types and accuracy level they differ in Casts alone:
of the scales, which are float16 in weights.bin and are widened when ONNX Runtime loads the CPU's
graph, and of the outputs, which leave the CUDA graph as float32.

Inputs: `input_ids` int64 [rows, chunk]; `query_seqlens` int32 [rows], how many of a row's ids are
real (the rest is padding on the right); `seqlens_k` int32 [rows], tokens in the cache once the
chunk is in, less one; `total_sequence_length` int32 [], the longest row then; `last` int64
[rows, 1], index of a row's last real token in the chunk; `scored` int64 [scored, 1], the rows whose
logits are wanted, which may be none on the CPU; and the KV cache, `past_key.N` and `past_value.N`
float32 [rows, kv_heads, capacity, head_dim], which the caller binds to the same memory as
`present_key.N` and `present_value.N`; float16 in the CUDA graph.

Outputs: `hidden` float32 [rows, hidden] and `logits` float32 [scored, vocabulary], of each row's
last real token alone. The Gather that picks that token stands before the last block's output
projection: from there on one position a row is computed, not all of them. ONNX Runtime computes
every output, fetched or not (docs/LOG.md, 2026-11-27); a head over no rows costs nothing.

The operators of the domain com.microsoft are described in ONNX Runtime's ContribOperators.md, and
the types that a provider has kernels for in its OperatorKernels.md: CUDA has float16 ones for all
of these, the embedding's GatherBlockQuantized included. Both graphs need ONNX Runtime 1.32, the
first with `query_seqlens`. Its CUDA norms sum the squares of float16 up in float32, since its pull
request 28682: before, a large residual stream became zeros.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from t1_edge.build import Decoder
from t1_edge_export.decoder import EMBEDDING, FINAL_NORM, HEAD, layer_name
from t1_edge_export.onnx_layout import Matrix
from t1_edge_export.onnx_nodes import CONTRIB, Nodes
from t1_edge_export.onnx_products import Activations, BlockProducts, Products

if TYPE_CHECKING:
    import onnx

_OPSETS: Final = {"": 21, CONTRIB: 1}

_NO_WEIGHT: Final = -6e4
"""A score of which softmax leaves nothing beside any other; float16 has it, too."""


def graph_over_weights(
    decoder: Decoder,
    matrices: Mapping[str, Matrix],
    norms: Mapping[str, NDArray[np.float32]],
    activations: Activations,
) -> "onnx.ModelProto":
    """The graph that thinks and reads, over weights.bin.

    Args:
        decoder: The shape.
        matrices: Where the matrices lie, by tensor name.
        norms: The norms' weights, float32 [n], by tensor name.
        activations: The type of activations. float16 is for quantized matrices.
    """
    nodes = Nodes()
    products = BlockProducts(nodes, matrices, activations)
    return GraphWriter(decoder, nodes, products, norms, activations).model()


class GraphWriter:
    """Builds the graph of one decoder.

    Args:
        decoder: The shape.
        nodes: Of the graph; empty.
        products: Multiplies, and adds to the same nodes.
        norms: The norms' weights, float32 [n], by tensor name; they are stored in the graph.
        activations: The type of activations, norms, rotary tables and KV cache.
        head: Whether logits are wanted beside the hidden state, and rows are scored.
        tiled: Whether attention may go tile by tile, as ONNX Runtime has it by itself: it needs no
            room for the scores of all pairs of tokens, and takes longer.
    """

    def __init__(
        self,
        decoder: Decoder,
        nodes: Nodes,
        products: Products,
        norms: Mapping[str, NDArray[np.float32]],
        activations: Activations = "float32",
        *,
        head: bool = True,
        tiled: bool = True,
    ) -> None:
        self._decoder = decoder
        self._nodes = nodes
        self._products = products
        self._head = head
        self._tiled = tiled
        self._type = np.dtype(activations)
        for name, weight in norms.items():
            nodes.constant(name, weight.astype(self._type))

    def model(self) -> "onnx.ModelProto":
        """The whole model; its matrices refer to files beside it."""
        from onnx import helper

        self._rope_tables()
        residual = self._products.embed()
        branch = ""
        for layer in range(self._decoder.layers):
            residual, branch = self._block(layer, residual, branch)
        self._read_out(residual, branch)
        graph = helper.make_graph(
            self._nodes.nodes,
            "t1-edge",
            self._inputs(),
            self._outputs(),
            [*self._nodes.initializers.values()],
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()]
        return helper.make_model(
            graph, opset_imports=opsets, producer_name="t1-edge", ir_version=10
        )

    def _block(self, layer: int, residual: str, branch: str) -> tuple[str, str]:
        """One decoder block.

        Args:
            layer: Its number.
            residual: The residual stream without the previous block's MLP.
            branch: That MLP's output, or "" before the first block.

        Returns:
            The residual stream with this block's attention, and its MLP's output.
        """
        normed, residual = self._norm(residual, branch, layer_name(layer, "input_layernorm"))
        attention = self._attention(layer, normed)
        if layer == self._decoder.layers - 1:
            attention = self._last_position(attention, "attention")
            residual = self._last_position(residual, "residual")
        output = self._products.one(attention, layer_name(layer, "self_attn.o_proj"))
        norm = layer_name(layer, "post_attention_layernorm")
        normed, residual = self._norm(residual, output, norm)
        return residual, self._mlp(layer, normed)

    def _attention(self, layer: int, normed: str) -> str:
        decoder = self._decoder
        names = [layer_name(layer, f"self_attn.{which}_proj") for which in "qkv"]
        # GroupQueryAttention takes them side by side, too, but not to norm their heads before.
        query = "" if decoder.qk_norm else self._products.together(normed, names)
        key = value = ""
        if not query:
            query, key, value = self._products.apart(normed, names)
        if decoder.qk_norm:
            query = self._head_norm(query, layer_name(layer, "self_attn.q_norm"), decoder.heads)
            key = self._head_norm(key, layer_name(layer, "self_attn.k_norm"), decoder.kv_heads)
        cache = [f"past_key.{layer}", f"past_value.{layer}"]
        lengths = ["seqlens_k", "total_sequence_length"]
        unused = ["", "", self._sink(), *[""] * 4]  # position_ids .. k_norm_weight
        inputs = [query, key, value, *cache, *lengths, "rope_cos", "rope_sin", *unused]
        attributes = {"num_heads": decoder.heads, "kv_num_heads": decoder.kv_heads}
        outputs = [f"attention.{layer}", f"present_key.{layer}", f"present_value.{layer}"]
        return self._nodes.contrib(
            "GroupQueryAttention",
            [*inputs, "query_seqlens"],
            outputs,
            do_rotary=1,
            scale=decoder.head_dim**-0.5,
            **attributes,
        )

    def _sink(self) -> str:
        """What each head attends to beside the tokens: nothing, or what gets no weight.

        ONNX Runtime attends tile by tile where nothing is given
        (contrib_ops/cpu/bert/group_query_attention.cc).
        """
        if self._tiled:
            return ""
        return self._nodes.constant("sink", np.full(self._decoder.heads, _NO_WEIGHT, self._type))

    def _head_norm(self, values: str, norm: str, heads: int) -> str:
        """RMS norm of each head by itself: [rows, chunk, heads * head_dim] in and out."""
        split = self._nodes.constant(f"split.{heads}", np.array([0, 0, heads, -1]))
        joined = self._nodes.constant("joined", np.array([0, 0, -1]))
        by_head = self._nodes.node("Reshape", [values, split], f"{norm}.heads")
        normed = self._simple_norm(by_head, norm)
        return self._nodes.node("Reshape", [normed, joined], f"{norm}.joined")

    def _mlp(self, layer: int, normed: str) -> str:
        names = [layer_name(layer, f"mlp.{which}_proj") for which in ("gate", "up")]
        gate, up = self._products.apart(normed, names)
        # QuickGelu with alpha 1 is x * sigmoid(x): SiLU in one pass.
        silu = self._nodes.contrib("QuickGelu", [gate], [f"silu.{layer}"], alpha=1.0)
        gated = self._nodes.node("Mul", [silu, up], f"gated.{layer}")
        return self._products.one(gated, layer_name(layer, "mlp.down_proj"))

    def _read_out(self, residual: str, branch: str) -> None:
        half = self._type == np.float16
        hidden, logits = ("hidden.half", "logits.half") if half else ("hidden", "logits")
        self._nodes.contrib(
            "SkipSimplifiedLayerNormalization",
            [residual, branch, FINAL_NORM],
            [hidden],
            epsilon=self._decoder.norm_epsilon,
        )
        if half:
            self._nodes.widen(hidden, "hidden")
        if self._head:
            scored = self._nodes.node("GatherND", [hidden, "scored"], "hidden.scored")
            self._products.one(scored, EMBEDDING if self._decoder.tied else HEAD, output=logits)
            if half:
                self._nodes.widen(logits, "logits")

    def _norm(self, residual: str, branch: str, norm: str) -> tuple[str, str]:
        """Add the branch to the residual stream and norm the sum: normed, sum."""
        if not branch:
            return self._simple_norm(residual, norm), residual
        normed, total = f"{norm}.normed", f"{norm}.residual"
        self._nodes.contrib(
            "SkipSimplifiedLayerNormalization",
            [residual, branch, norm],
            [normed, "", "", total],
            epsilon=self._decoder.norm_epsilon,
        )
        return normed, total

    def _simple_norm(self, values: str, norm: str) -> str:
        epsilon = self._decoder.norm_epsilon
        return self._nodes.node(
            "SimplifiedLayerNormalization",
            [values, norm],
            f"{norm}.normed",
            axis=-1,
            epsilon=epsilon,
        )

    def _last_position(self, values: str, what: str) -> str:
        """[rows, chunk, n] to [rows, n]."""
        return self._nodes.node("GatherND", [values, "last"], f"{what}.last", batch_dims=1)

    def _rope_tables(self) -> None:
        """Cosines and sines, [context, head_dim / 2], for RoFormer's rotation."""
        decoder = self._decoder
        exponents = np.arange(0, decoder.head_dim, 2, dtype=np.float32) / decoder.head_dim
        frequencies = np.float32(1) / np.float32(decoder.rope_theta) ** exponents
        angles = np.arange(decoder.context, dtype=np.float32)[:, None] * frequencies
        self._nodes.constant("rope_cos", np.cos(angles).astype(self._type))
        self._nodes.constant("rope_sin", np.sin(angles).astype(self._type))

    def _inputs(self) -> list["onnx.ValueInfoProto"]:
        from onnx import TensorProto

        ids = _value("input_ids", TensorProto.INT64, ["rows", "chunk"])
        counts = [_value(n, TensorProto.INT32, ["rows"]) for n in ("query_seqlens", "seqlens_k")]
        total = _value("total_sequence_length", TensorProto.INT32, [])
        last = _value("last", TensorProto.INT64, ["rows", 1])
        scored = [_value("scored", TensorProto.INT64, ["scored", 1])] if self._head else []
        return [ids, *counts, total, last, *scored, *self._cache("past")]

    def _outputs(self) -> list["onnx.ValueInfoProto"]:
        from onnx import TensorProto

        hidden = _value("hidden", TensorProto.FLOAT, ["rows", self._decoder.hidden])
        logits = _value("logits", TensorProto.FLOAT, ["scored", self._decoder.vocabulary])
        return [hidden, *([logits] if self._head else []), *self._cache("present")]

    def _cache(self, when: str) -> list["onnx.ValueInfoProto"]:
        from onnx import helper

        decoder, type_ = self._decoder, helper.np_dtype_to_tensor_dtype(self._type)
        shape: list[int | str] = ["rows", decoder.kv_heads, "capacity", decoder.head_dim]
        names = [f"{when}_{x}.{n}" for n in range(decoder.layers) for x in ("key", "value")]
        return [_value(name, type_, shape) for name in names]


def _value(name: str, type_: int, shape: Sequence[int | str]) -> "onnx.ValueInfoProto":
    from onnx import helper

    return helper.make_tensor_value_info(name, type_, shape)
