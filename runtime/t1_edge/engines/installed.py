"""What is installed of each engine, and what it says it can run on: for reports."""

from collections.abc import Callable
from importlib.metadata import packages_distributions, version
from typing import Final

import msgspec

from t1_edge.build import Format
from t1_edge.engines.llama_devices import backends, llama_devices
from t1_edge.engines.opening import load_library, module_of


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """An engine's library.

    Attributes:
        format: Whose engine.
        packages: The distributions that provide it, with their versions, such as
            "onnxruntime-gpu 1.32.0"; more than one have overwritten each other, and none is left
            of a library that no package manager has put there.
        backends: ONNX Runtime's execution providers, ggml's backends: what it was compiled with,
            be it here or not; none if it was not loaded.
        devices: What those of ggml find here, such as "CUDA0: NVIDIA L4"; ONNX Runtime's do not
            say.
    """

    format: Format
    packages: list[str]
    backends: list[str]
    devices: list[str]


def installed(format: Format, *, loads: bool) -> Installed:
    """What is installed of an engine.

    Args:
        format: Whose.
        loads: Whether its library can be loaded, as a process of its own has shown: it is, here.

    Raises:
        EngineError: If it cannot be loaded.
    """
    names = sorted(set(packages_distributions().get(module_of(format), ())))
    found, devices = _LISTS[format]() if loads else ([], [])
    return Installed(
        format=format,
        packages=[f"{name.replace('_', '-')} {version(name)}" for name in names],
        backends=found,
        devices=devices,
    )


def _onnx() -> tuple[list[str], list[str]]:
    load_library("onnx")
    import onnxruntime

    return onnxruntime.get_available_providers(), []


def _llama() -> tuple[list[str], list[str]]:
    load_library("gguf")
    return backends(), [f"{device.name}: {device.description}" for device in llama_devices()]


_LISTS: Final[dict[Format, Callable[[], tuple[list[str], list[str]]]]] = {
    "onnx": _onnx,
    "gguf": _llama,
}
