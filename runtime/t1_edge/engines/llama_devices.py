"""The devices that llama.cpp was compiled for and finds here: ggml's registry of backends."""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

_BACKENDS: Final[Mapping[str, tuple[str, ...]]] = {
    "cuda": ("CUDA",),
    "metal": ("MTL", "Metal"),
    "webgpu": ("WebGPU",),
}
"""What ggml calls the backends of a device; Metal's has had two names."""


@dataclass(frozen=True, kw_only=True)
class LlamaDevice:
    """A device of ggml's registry.

    Attributes:
        handle: ggml_backend_dev_t, an address.
        backend: Whose device it is: "CPU", "CUDA", "MTL", ...
        name: As ggml numbers it: "CUDA0".
        description: As its maker calls it.
    """

    handle: int
    backend: str
    name: str
    description: str


def llama_devices() -> list[LlamaDevice]:
    """Every device that ggml has registered, processors among them."""
    library = _registry()
    handles = [library.ggml_backend_dev_get(at) for at in range(library.ggml_backend_dev_count())]
    return [
        LlamaDevice(
            handle=handle,
            backend=library.ggml_backend_reg_name(
                library.ggml_backend_dev_backend_reg(handle)
            ).decode(),
            name=library.ggml_backend_dev_name(handle).decode(),
            description=library.ggml_backend_dev_description(handle).decode(),
        )
        for handle in handles
    ]


def backends() -> list[str]:
    """Every backend that llama.cpp was compiled with, also one that finds no device here."""
    library = _registry()
    return [
        library.ggml_backend_reg_name(library.ggml_backend_reg_get(at)).decode()
        for at in range(library.ggml_backend_reg_count())
    ]


def has_backend(device: str) -> bool:
    """Whether llama.cpp was compiled for a device, be it here or not."""
    return any(found in _BACKENDS[device] for found in backends())


def devices_of(device: str) -> list[LlamaDevice]:
    """Those that are what t1-edge calls "cuda", "metal" or "webgpu"; none for "cpu"."""
    return [found for found in llama_devices() if found.backend in _BACKENDS.get(device, ())]


def device_array(device: str) -> "ctypes.Array[ctypes.c_void_p]":
    """`llama_model_params.devices` for a device: the addresses of `devices_of`, and a null.

    On the CPU that is the null alone: a llama.cpp that was compiled for a GPU would use it for the
    large products, asked or not.
    """
    handles = [found.handle for found in devices_of(device)]
    return (ctypes.c_void_p * (len(handles) + 1))(*handles, None)


def library_file() -> Path:
    """Where the library of ggml was loaded from: compiled anew, it has another time."""
    return Path(_registry()._name)


@cache
def _registry() -> Any:
    """The library of ggml, as llama-cpp-python has loaded it."""
    from llama_cpp import _ggml

    library: Any = _ggml.libggml
    address, text = ctypes.c_void_p, ctypes.c_char_p
    for kind in ("dev", "reg"):
        getattr(library, f"ggml_backend_{kind}_count").restype = ctypes.c_size_t
        get = getattr(library, f"ggml_backend_{kind}_get")
        get.argtypes, get.restype = [ctypes.c_size_t], address
    for name, result in (
        ("ggml_backend_dev_backend_reg", address),
        ("ggml_backend_dev_description", text),
        ("ggml_backend_dev_name", text),
        ("ggml_backend_reg_name", text),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype = [address], result
    return library
