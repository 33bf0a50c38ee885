"""The nodes and initializers of an ONNX graph that is being made."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

CONTRIB: Final = "com.microsoft"


class Nodes:
    """Nodes in the order in which they run.

    Attributes:
        nodes: They.
        initializers: What they read, by name.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node of ONNX's own operators; its output."""
        return self.add(op, inputs, [output], **attributes)

    def contrib(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> str:
        """Add a node of ONNX Runtime's; its first output."""
        return self.add(op, inputs, outputs, domain=CONTRIB, **attributes)

    def add(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node of a domain; its first output."""
        from onnx import helper

        node = helper.make_node(op, inputs, outputs, outputs[0], domain=domain, **attributes)
        self.nodes.append(node)
        return outputs[0]

    def widen(self, values: str, output: str) -> str:
        """Cast to float32."""
        from onnx import TensorProto

        return self.node("Cast", [values], output, to=TensorProto.FLOAT)

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Add an initializer that is stored in the graph; its name. The first of a name stays."""
        from onnx import numpy_helper

        self.initializers.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def external(self, name: str, file: str, offset: int, shape: Sequence[int], dtype: type) -> str:
        """Add an initializer whose bytes lie in a file beside the graph; its name.

        Args:
            name: Of the initializer; the first of a name stays.
            file: Name of the file.
            offset: Where in it the bytes begin.
            shape: Of the tensor.
            dtype: Of its elements.
        """
        from onnx import TensorProto, helper

        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        tensor = TensorProto(name=name, dims=shape, data_location=TensorProto.EXTERNAL)
        tensor.data_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        where = {"location": file, "offset": str(offset), "length": str(size)}
        for key, value in where.items():
            tensor.external_data.add(key=key, value=value)
        self.initializers.setdefault(name, tensor)
        return name
