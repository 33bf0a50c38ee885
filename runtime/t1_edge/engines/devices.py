"""Which devices an engine's library could run on here, and what stands in the way of the others.

Nothing is run: what is found here is what can be known before. Whether a device really runs is
`t1_edge.engines.probe`'s.
"""

import sys
from pathlib import Path
from typing import Final, Literal

from t1_edge.build import Format
from t1_edge.engines.cuda_libraries import libraries_obstacle
from t1_edge.engines.llama_devices import devices_of, has_backend
from t1_edge.engines.nvidia import NO_DRIVER, driver_version, nvidia_driver
from t1_edge.engines.places import PLACES
from t1_edge.engines.webgpu_plugin import plugin_obstacle

DeviceName = Literal["cpu", "cuda", "metal", "webgpu"]

DEVICES: Final[tuple[DeviceName, ...]] = ("cuda", "metal", "cpu")
"""In the order in which "auto" takes them."""

BY_NAME: Final[tuple[DeviceName, ...]] = ("webgpu",)
"""Those that have to be asked for."""

_LLAMA_NAMES: Final = {"cuda": "CUDA", "metal": "Metal", "webgpu": "WebGPU"}

_GRAPH_NEEDS: Final = (1, 32)
"""The first ONNX Runtime whose attention takes `query_seqlens`."""

_NEEDED: Final = ".".join(map(str, _GRAPH_NEEDS))

_COMPILE: Final = (
    "compile it again with CMAKE_ARGS=-DGGML_{backend}=on pip install --force-reinstall "
    "--no-cache-dir --no-deps --no-binary llama-cpp-python llama-cpp-python=={version}"
)


def obstacle(format: Format, device: DeviceName) -> str | None:
    """Why a format's engine cannot run on a device here, with what to do; None if nothing is known.

    The engine's library must be installed and loadable.
    """
    if device == "cpu":
        return _both_wheels() if format == "onnx" else None
    if format == "gguf":
        return _llama_obstacle(device)
    if device == "metal":
        return (
            "ONNX Runtime has no Metal: run the build's GGUF (t1-edge[gguf]), or ask for the "
            "device webgpu"
        )
    if device == "webgpu":
        return _both_wheels() or _version_obstacle() or plugin_obstacle()
    return _both_wheels() or _onnx_cuda_obstacle()


def _onnx_cuda_obstacle() -> str | None:
    """What keeps ONNX Runtime from CUDA."""
    import onnxruntime

    if driver_version() is None:
        return NO_DRIVER
    found = onnxruntime.__version__
    if PLACES["cuda"].provider not in onnxruntime.get_available_providers():
        return (
            f"onnxruntime {found} is a wheel without CUDA: in an environment of its own, "
            f"pip install 't1-edge[cuda]', which brings onnxruntime-gpu {_NEEDED}"
        )
    return _version_obstacle() or _driver_obstacle(_wheel_cuda()) or libraries_obstacle(_packages())


def _version_obstacle() -> str | None:
    """Whether ONNX Runtime is too old."""
    import onnxruntime

    found = onnxruntime.__version__
    if tuple(map(int, found.split(".")[:2])) < _GRAPH_NEEDS:
        return f"onnxruntime {found} is too old for the graph: it needs {_NEEDED} (query_seqlens)"
    return None


def _llama_obstacle(device: DeviceName) -> str | None:
    """What keeps llama.cpp from a GPU."""
    if device == "metal" and sys.platform != "darwin":
        return "Metal is on Macs alone"
    if devices_of(device):
        return None
    import llama_cpp

    missing = _driver_obstacle(None) if device == "cuda" else None
    if missing:
        return missing
    name, found = _LLAMA_NAMES[device], llama_cpp.__version__
    again = _COMPILE.format(backend=name.upper(), version=found)
    if not has_backend(device):
        dawn = ", which needs Dawn" if device == "webgpu" else ""
        return f"llama-cpp-python {found} was compiled without {name}: {again}{dawn}"
    if device != "cuda":
        return f"llama-cpp-python {found} was compiled with {name}, and finds no GPU for it"
    driver = nvidia_driver()  # ggml has started it already, to count the GPUs
    if driver.missing:
        return driver.missing
    return (
        f"llama-cpp-python {found} was compiled with CUDA and finds none of the driver's GPUs "
        f"({', '.join(driver.gpus)}): if for a newer CUDA than {'.'.join(map(str, driver.cuda))}, "
        f"which the driver gives, update the driver, or {again}"
    )


def _both_wheels() -> str | None:
    """The two wheels of ONNX Runtime overwrite one another's files."""
    installed = {path.name.partition("-")[0] for path in _packages().glob("onnxruntime*.dist-info")}
    if {"onnxruntime", "onnxruntime_gpu"} <= installed:
        return (
            "onnxruntime and onnxruntime-gpu are both installed and have overwritten one another: "
            "pip uninstall onnxruntime onnxruntime-gpu, then install one of t1-edge[cpu] and "
            "t1-edge[cuda]"
        )
    return None


def _packages() -> Path:
    """Where pip has put ONNX Runtime: beside what it noted of it."""
    import onnxruntime

    return Path(onnxruntime.__file__).parents[1]


def _wheel_cuda() -> int | None:
    """Major version of CUDA that the wheel of ONNX Runtime is for; None if it does not say."""
    from onnxruntime.capi import build_and_package_info

    said = str(getattr(build_and_package_info, "cuda_version", ""))
    major = said.partition(".")[0]
    return int(major) if major.isdecimal() else None


def _driver_obstacle(needed: int | None) -> str | None:
    """What is wrong with NVIDIA's driver, if it must give this major version of CUDA."""
    found = driver_version()
    if found is None:
        return NO_DRIVER
    if needed is not None and found < (needed, 0):
        gives = ".".join(map(str, found))
        return (
            f"the NVIDIA driver gives CUDA {gives} and the onnxruntime wheel is for CUDA {needed}: "
            "update the driver"
        )
    return None
