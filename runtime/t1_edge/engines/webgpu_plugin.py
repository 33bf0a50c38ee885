"""ONNX Runtime's plugin for WebGPU: a package of its own, which has to be registered."""

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from t1_edge.engines.places import PLACES

PACKAGE: Final = "onnxruntime-ep-webgpu"

_MODULE: Final = "onnxruntime_ep_webgpu"


def plugin_obstacle() -> str | None:
    """Why the plugin cannot be used here, with what to do; None if nothing is known."""
    if find_spec(_MODULE) is None:
        return f"{PACKAGE} is not installed: pip install 't1-edge[webgpu]'"
    try:
        found = plugin_devices()
    except Exception as e:  # the bindings raise one class an error code, without a base
        return f"{PACKAGE} cannot be loaded: {e}"
    if not found:
        return f"{PACKAGE} finds no GPU, as ONNX Runtime lists them"
    return None


@cache
def plugin_devices() -> Sequence[Any]:
    """The plugin's devices, of ONNX Runtime's class OrtEpDevice; the plugin chooses one itself.

    Raises:
        Exception: One of ONNX Runtime's, if it cannot load the plugin.
    """
    import onnxruntime

    plugin = import_module(_MODULE)
    onnxruntime.register_execution_provider_library(PACKAGE, plugin.get_library_path())
    devices = onnxruntime.get_ep_devices()
    return [device for device in devices if device.ep_name == PLACES["webgpu"].provider]
