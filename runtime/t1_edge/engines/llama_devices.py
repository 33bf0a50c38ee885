"""The devices that llama.cpp was compiled for and finds here: ggml's registry of backends."""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

_BACKENDS: Final[Mapping[str, tuple[str, ...]]] = {"cuda": ("CUDA",), "metal": ("MTL", "Metal")}
"""What ggml calls the backends of a device; Metal's has had two names."""


@dataclass(frozen=True, kw_only=True)
class LlamaDevice:
    """A device of ggml's registry.

    Attributes:
        handle: ggml_backend_dev_t, an address.
        backend: Whose device it is: "CPU", "CUDA", "MTL", ...
    """

    handle: int
    backend: str


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
        )
        for handle in handles
    ]


def devices_of(device: str) -> list[LlamaDevice]:
    """Those that are what t1-edge calls "cuda" or "metal"; none for "cpu"."""
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
    library.ggml_backend_dev_count.restype = ctypes.c_size_t
    library.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    library.ggml_backend_dev_get.restype = address
    for name, result in (
        ("ggml_backend_dev_backend_reg", address),
        ("ggml_backend_reg_name", text),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype = [address], result
    return library
