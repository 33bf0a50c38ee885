"""Products with the matrices of weights.bin, as a graph's nodes."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal, Protocol

import numpy as np

from t1_edge.build import ONNX_WEIGHTS
from t1_edge_export.decoder import EMBEDDING
from t1_edge_export.onnx_layout import Matrix
from t1_edge_export.onnx_nodes import Nodes

Activations = Literal["float32", "float16"]

# 4 is int8 activations, the only level at which ONNX Runtime's CPU kernels are fast (4 bits) or
# usable (8 bits); docs/LOG.md has what float32 activations would cost and give. CUDA's kernels
# multiply in the type of the activations, which is level 0.
_ACCURACY_LEVELS: Final[Mapping[Activations, int]] = {"float32": 4, "float16": 0}


class Products(Protocol):
    """How a graph multiplies values with a decoder's matrices."""

    def embed(self) -> str:
        """The embedding's rows of `input_ids`, [rows, chunk, hidden]."""

    def one(self, values: str, name: str, output: str = "") -> str:
        """Values times the transposed matrix of a tensor.

        Args:
            values: [..., in].
            name: Of the tensor.
            output: What to call the product, [..., out]; a name of its own if empty.
        """

    def together(self, values: str, names: Sequence[str]) -> str:
        """Values times all of some tensors, side by side; "" if these are not one matrix."""

    def apart(self, values: str, names: Sequence[str]) -> list[str]:
        """Values times each of some tensors."""


class BlockProducts:
    """Matrices in blocks that share a scale. See `Products`.

    Args:
        nodes: Of the graph.
        matrices: Where they lie in weights.bin, by tensor name.
        activations: The type of the values.
    """

    def __init__(
        self, nodes: Nodes, matrices: Mapping[str, Matrix], activations: Activations
    ) -> None:
        self._nodes = nodes
        self._matrices = matrices
        self._widens = activations == "float32"
        self._accuracy_level = _ACCURACY_LEVELS[activations]

    def embed(self) -> str:
        """See `Products`."""
        matrix = self._matrices[EMBEDDING]
        if matrix.encoding == "f32":
            return self._nodes.node("Gather", [self._codes(matrix), "input_ids"], "embedded")
        shape = (matrix.rows, matrix.width)
        codes = self._stored("embedding.codes", matrix.codes, shape, np.uint8)
        inputs = [codes, "input_ids", self._scales(matrix)]
        sizes = {"bits": 8, "block_size": matrix.block_size, "gather_axis": 0, "quantize_axis": 1}
        return self._nodes.contrib("GatherBlockQuantized", inputs, ["embedded"], **sizes)

    def one(self, values: str, name: str, output: str = "") -> str:
        """See `Products`."""
        matrix = self._matrices[name]
        output = output or f"{matrix.name}.out"
        codes = self._codes(matrix)
        if matrix.encoding == "f32":
            return self._nodes.contrib("FusedMatMul", [values, codes], [output], transB=1)
        return self._nodes.contrib(
            "MatMulNBits",
            [values, codes, self._scales(matrix)],
            [output],
            K=matrix.width,
            N=matrix.rows,
            bits=matrix.code_bits,
            block_size=matrix.block_size,
            accuracy_level=self._accuracy_level,
        )

    def together(self, values: str, names: Sequence[str]) -> str:
        """See `Products`."""
        matrix = self._matrices[names[0]]
        return self.one(values, matrix.name) if len(matrix.parts) == len(names) else ""

    def apart(self, values: str, names: Sequence[str]) -> list[str]:
        """See `Products`. A matrix that several share multiplies them once."""
        found: list[str] = []
        while len(found) < len(names):
            matrix = self._matrices[names[len(found)]]
            if len(matrix.parts) == 1:
                found.append(self.one(values, matrix.name))
                continue
            product = self.one(values, matrix.name, output=f"{matrix.name}.product")
            found += self._split(product, matrix)
        return found

    def _split(self, product: str, matrix: Matrix) -> list[str]:
        """A matrix's product, [..., rows], as that of each part, [..., rows of the part]."""
        starts = [*matrix.parts.values(), matrix.rows]
        sizes = self._nodes.constant(f"{matrix.name}.rows", np.diff(starts))
        outputs = [f"{name}.out" for name in matrix.parts]
        self._nodes.add("Split", [product, sizes], outputs, axis=-1)
        return outputs

    def _codes(self, matrix: Matrix) -> str:
        if matrix.encoding == "f32":
            shape: Sequence[int] = (matrix.rows, matrix.width)
            return self._stored(matrix.name, matrix.codes, shape, np.float32)
        shape = (matrix.rows, matrix.blocks, matrix.row_bytes // matrix.blocks)
        return self._stored(f"{matrix.name}.codes", matrix.codes, shape, np.uint8)

    def _scales(self, matrix: Matrix) -> str:
        """A matrix's scales in the type of the activations, as the operators want them."""
        stored, widened = f"{matrix.name}.scales", f"{matrix.name}.scales.widened"
        fresh = stored not in self._nodes.initializers
        self._stored(stored, matrix.scales, (matrix.rows, matrix.blocks), np.float16)
        if not self._widens:
            return stored
        # A constant: ONNX Runtime casts it once, when it loads the graph.
        return self._nodes.widen(stored, widened) if fresh else widened

    def _stored(self, name: str, offset: int, shape: Sequence[int], dtype: type) -> str:
        return self._nodes.external(name, ONNX_WEIGHTS, offset, shape, dtype)
