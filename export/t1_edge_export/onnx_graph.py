"""The ONNX graph of a decoder, in the operators that ONNX Runtime runs fastest.

A graph for each type of activations, over the same weights.bin: float32 for the CPU, float16 for
CUDA, whose attention knows no float32. Beside types and accuracy level they differ in Casts alone:
of the scales, which are float16 in weights.bin and are widened when ONNX Runtime loads the CPU's
graph, and of the outputs, which leave the CUDA graph as float32.

Inputs: `input_ids` int64 [rows, chunk]; `query_seqlens` int32 [rows], how many of a row's ids are
real (the rest is padding on the right); `seqlens_k` int32 [rows], tokens in the cache once the
chunk is in, less one; `total_sequence_length` int32 [], the longest row then; `last` int64
[rows, 1], index of a row's last real token in the chunk; and the KV cache, `past_key.N` and
`past_value.N` float32 [rows, kv_heads, capacity, head_dim], which the caller binds to the same
memory as `present_key.N` and `present_value.N`; float16 in the CUDA graph.

Outputs: `hidden` float32 [rows, hidden] and `logits` float32 [rows, vocabulary], of each row's last
real token alone. The Gather that picks that token stands before the last block's output projection:
from there on one position a row is computed, not all of them.

The operators of the domain com.microsoft are described in ONNX Runtime's ContribOperators.md, and
the types that a provider has kernels for in its OperatorKernels.md: CUDA has float16 ones for all
of these, the embedding's GatherBlockQuantized included. Both graphs need ONNX Runtime 1.32, the
first with `query_seqlens`. Its CUDA norms sum the squares of float16 up in float32, since its pull
request 28682: before, a large residual stream became zeros.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from t1_edge.build import ONNX_WEIGHTS, Decoder
from t1_edge_export.containers import BLOCK
from t1_edge_export.decoder import EMBEDDING, FINAL_NORM, HEAD, layer_name
from t1_edge_export.onnx_layout import Matrix

if TYPE_CHECKING:
    import onnx

_CONTRIB: Final = "com.microsoft"
_OPSETS: Final = {"": 21, _CONTRIB: 1}
Activations = Literal["float32", "float16"]

# 4 is int8 activations, the only level at which ONNX Runtime's CPU kernels are fast (4 bits) or
# usable (8 bits); docs/LOG.md has what float32 activations would cost and give. CUDA's kernels
# multiply in the type of the activations, which is level 0.
_ACCURACY_LEVELS: Final[Mapping[Activations, int]] = {"float32": 4, "float16": 0}


class GraphWriter:
    """Builds the graph of one decoder.

    Args:
        decoder: The shape.
        matrices: Where the matrices lie in weights.bin, by tensor name.
        norms: The norms' weights, float32 [n], by tensor name; they are stored in the graph.
        activations: The type of activations, norms, rotary tables and KV cache. float16 is for
            quantized matrices.
        head: Whether logits are wanted beside the hidden state.
    """

    def __init__(
        self,
        decoder: Decoder,
        matrices: Mapping[str, Matrix],
        norms: Mapping[str, NDArray[np.float32]],
        activations: Activations = "float32",
        *,
        head: bool = True,
    ) -> None:
        self._decoder = decoder
        self._head = head
        self._matrices = matrices
        self._accuracy_level = _ACCURACY_LEVELS[activations]
        self._type = np.dtype(activations)
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        for name, weight in norms.items():
            self._constant(name, weight.astype(self._type))

    def model(self) -> "onnx.ModelProto":
        """The whole model; its matrices refer to weights.bin."""
        from onnx import helper

        self._rope_tables()
        residual = self._embed()
        branch = ""
        for layer in range(self._decoder.layers):
            residual, branch = self._block(layer, residual, branch)
        self._read_out(residual, branch)
        graph = helper.make_graph(
            self._nodes, "t1-edge", self._inputs(), self._outputs(), [*self._initializers.values()]
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
        output = self._multiply(attention, layer_name(layer, "self_attn.o_proj"))
        norm = layer_name(layer, "post_attention_layernorm")
        normed, residual = self._norm(residual, output, norm)
        return residual, self._mlp(layer, normed)

    def _attention(self, layer: int, normed: str) -> str:
        decoder = self._decoder
        names = [layer_name(layer, f"self_attn.{which}_proj") for which in "qkv"]
        if self._are_one(names) and not decoder.qk_norm:
            query, key, value = self._multiply(normed, names[0]), "", ""  # GQA takes them together
        else:
            query, key, value = self._multiply_apart(normed, names)
        if decoder.qk_norm:
            query = self._head_norm(query, layer_name(layer, "self_attn.q_norm"), decoder.heads)
            key = self._head_norm(key, layer_name(layer, "self_attn.k_norm"), decoder.kv_heads)
        cache = [f"past_key.{layer}", f"past_value.{layer}"]
        lengths = ["seqlens_k", "total_sequence_length"]
        unused = [""] * 7  # position_ids .. k_norm_weight
        inputs = [query, key, value, *cache, *lengths, "rope_cos", "rope_sin", *unused]
        attributes = {"num_heads": decoder.heads, "kv_num_heads": decoder.kv_heads}
        outputs = [f"attention.{layer}", f"present_key.{layer}", f"present_value.{layer}"]
        return self._contrib(
            "GroupQueryAttention",
            [*inputs, "query_seqlens"],
            outputs,
            do_rotary=1,
            scale=decoder.head_dim**-0.5,
            **attributes,
        )

    def _are_one(self, names: Sequence[str]) -> bool:
        """Whether the tensors are all that one product multiplies."""
        return len(self._matrices[names[0]].parts) == len(names)

    def _head_norm(self, values: str, norm: str, heads: int) -> str:
        """RMS norm of each head by itself: [rows, chunk, heads * head_dim] in and out."""
        split = self._constant(f"split.{heads}", np.array([0, 0, heads, -1]))
        joined = self._constant("joined", np.array([0, 0, -1]))
        by_head = self._node("Reshape", [values, split], f"{norm}.heads")
        normed = self._simple_norm(by_head, norm)
        return self._node("Reshape", [normed, joined], f"{norm}.joined")

    def _mlp(self, layer: int, normed: str) -> str:
        names = [layer_name(layer, f"mlp.{which}_proj") for which in ("gate", "up")]
        gate, up = self._multiply_apart(normed, names)
        # QuickGelu with alpha 1 is x * sigmoid(x): SiLU in one pass.
        silu = self._contrib("QuickGelu", [gate], [f"silu.{layer}"], alpha=1.0)
        gated = self._node("Mul", [silu, up], f"gated.{layer}")
        return self._multiply(gated, layer_name(layer, "mlp.down_proj"))

    def _read_out(self, residual: str, branch: str) -> None:
        half = self._type == np.float16
        hidden, logits = ("hidden.half", "logits.half") if half else ("hidden", "logits")
        self._contrib(
            "SkipSimplifiedLayerNormalization",
            [residual, branch, FINAL_NORM],
            [hidden],
            epsilon=self._decoder.norm_epsilon,
        )
        if half:
            self._widen(hidden, "hidden")
        if self._head:
            self._multiply(hidden, EMBEDDING if self._decoder.tied else HEAD, output=logits)
            if half:
                self._widen(logits, "logits")

    def _norm(self, residual: str, branch: str, norm: str) -> tuple[str, str]:
        """Add the branch to the residual stream and norm the sum: normed, sum."""
        if not branch:
            return self._simple_norm(residual, norm), residual
        normed, total = f"{norm}.normed", f"{norm}.residual"
        self._contrib(
            "SkipSimplifiedLayerNormalization",
            [residual, branch, norm],
            [normed, "", "", total],
            epsilon=self._decoder.norm_epsilon,
        )
        return normed, total

    def _simple_norm(self, values: str, norm: str) -> str:
        epsilon = self._decoder.norm_epsilon
        return self._node(
            "SimplifiedLayerNormalization",
            [values, norm],
            f"{norm}.normed",
            axis=-1,
            epsilon=epsilon,
        )

    def _last_position(self, values: str, what: str) -> str:
        """[rows, chunk, n] to [rows, n]."""
        return self._node("GatherND", [values, "last"], f"{what}.last", batch_dims=1)

    def _embed(self) -> str:
        matrix = self._matrices[EMBEDDING]
        if matrix.encoding == "f32":
            return self._node("Gather", [self._codes(matrix), "input_ids"], "embedded")
        codes = self._external(
            "embedding.codes", matrix.codes, (matrix.rows, matrix.width), np.uint8
        )
        inputs = [codes, "input_ids", self._scales(matrix)]
        sizes = {"bits": 8, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
        return self._contrib("GatherBlockQuantized", inputs, ["embedded"], **sizes)

    def _multiply(self, values: str, name: str, output: str = "") -> str:
        """Values times the transposed matrix."""
        matrix = self._matrices[name]
        output = output or f"{matrix.name}.out"
        if matrix.encoding == "f32":
            return self._contrib("FusedMatMul", [values, self._codes(matrix)], [output], transB=1)
        return self._contrib(
            "MatMulNBits",
            [values, self._codes(matrix), self._scales(matrix)],
            [output],
            K=matrix.width,
            N=matrix.rows,
            bits=4 if matrix.encoding == "q4_0" else 8,
            block_size=BLOCK,
            accuracy_level=self._accuracy_level,
        )

    def _multiply_apart(self, values: str, names: Sequence[str]) -> list[str]:
        """Values times each of some tensors: a matrix that several share multiplies them once."""
        found: list[str] = []
        while len(found) < len(names):
            matrix = self._matrices[names[len(found)]]
            if len(matrix.parts) == 1:
                found.append(self._multiply(values, matrix.name))
                continue
            product = self._multiply(values, matrix.name, output=f"{matrix.name}.product")
            found += self._split(product, matrix)
        return found

    def _split(self, product: str, matrix: Matrix) -> list[str]:
        """A matrix's product, [..., rows], as that of each part, [..., rows of the part]."""
        starts = [*matrix.parts.values(), matrix.rows]
        sizes = self._constant(f"{matrix.name}.rows", np.diff(starts))
        outputs = [f"{name}.out" for name in matrix.parts]
        self._add("Split", [product, sizes], outputs, "", {"axis": -1})
        return outputs

    def _codes(self, matrix: Matrix) -> str:
        if matrix.encoding == "f32":
            shape: Sequence[int] = (matrix.rows, matrix.width)
            return self._external(matrix.name, matrix.codes, shape, np.float32)
        shape = (matrix.rows, matrix.blocks, matrix.row_bytes // matrix.blocks)
        return self._external(f"{matrix.name}.codes", matrix.codes, shape, np.uint8)

    def _scales(self, matrix: Matrix) -> str:
        """A matrix's scales in the type of the activations, as the operators want them."""
        stored, widened = f"{matrix.name}.scales", f"{matrix.name}.scales.widened"
        fresh = stored not in self._initializers
        shape = (matrix.rows, matrix.blocks)
        self._external(stored, matrix.scales, shape, np.float16)
        if self._type == np.float16:
            return stored
        # A constant: ONNX Runtime casts it once, when it loads the graph.
        return self._widen(stored, widened) if fresh else widened

    def _widen(self, values: str, output: str) -> str:
        """Cast to float32."""
        from onnx import TensorProto

        return self._node("Cast", [values], output, to=TensorProto.FLOAT)

    def _rope_tables(self) -> None:
        """Cosines and sines, [context, head_dim / 2], for RoFormer's rotation."""
        decoder = self._decoder
        exponents = np.arange(0, decoder.head_dim, 2, dtype=np.float32) / decoder.head_dim
        frequencies = np.float32(1) / np.float32(decoder.rope_theta) ** exponents
        angles = np.arange(decoder.context, dtype=np.float32)[:, None] * frequencies
        self._constant("rope_cos", np.cos(angles).astype(self._type))
        self._constant("rope_sin", np.sin(angles).astype(self._type))

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        from onnx import numpy_helper

        self._initializers.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def _external(
        self,
        name: str,
        offset: int,
        shape: Sequence[int],
        dtype: type,
        *,
        file: str = ONNX_WEIGHTS,
    ) -> str:
        """An initializer whose bytes lie in a file beside the graph."""
        from onnx import TensorProto, helper

        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        tensor = TensorProto(name=name, dims=shape, data_location=TensorProto.EXTERNAL)
        tensor.data_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        where = {"location": file, "offset": str(offset), "length": str(size)}
        for key, value in where.items():
            tensor.external_data.add(key=key, value=value)
        self._initializers.setdefault(name, tensor)
        return name

    def _node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        return self._add(op, inputs, [output], "", attributes)

    def _contrib(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> str:
        return self._add(op, inputs, outputs, _CONTRIB, attributes)

    def _add(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        domain: str,
        attributes: Mapping[str, Any],
    ) -> str:
        from onnx import helper

        node = helper.make_node(op, inputs, outputs, outputs[0], domain=domain, **attributes)
        self._nodes.append(node)
        return outputs[0]

    def _inputs(self) -> list["onnx.ValueInfoProto"]:
        from onnx import TensorProto

        ids = _value("input_ids", TensorProto.INT64, ["rows", "chunk"])
        counts = [_value(n, TensorProto.INT32, ["rows"]) for n in ("query_seqlens", "seqlens_k")]
        total = _value("total_sequence_length", TensorProto.INT32, [])
        last = _value("last", TensorProto.INT64, ["rows", 1])
        return [ids, *counts, total, last, *self._cache("past")]

    def _outputs(self) -> list["onnx.ValueInfoProto"]:
        from onnx import TensorProto

        hidden = _value("hidden", TensorProto.FLOAT, ["rows", self._decoder.hidden])
        logits = _value("logits", TensorProto.FLOAT, ["rows", self._decoder.vocabulary])
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
