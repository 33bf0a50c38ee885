"""NVIDIA's driver, asked through its own libraries, which come with the driver and nothing else.

The functions and their results are those of CUDA's driver API, cuda.h, and of NVML, nvml.h.
"""

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

_LIBRARY: Final = "libcuda.so.1"
_MANAGEMENT: Final = "libnvidia-ml.so.1"
_CHOOSING: Final = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
_LONGEST: Final = 256  # bytes of a name: more than either library gives
_NO_DEVICE: Final = 100  # CUDA_ERROR_NO_DEVICE

NO_DRIVER: Final = f"there is no NVIDIA driver: {_LIBRARY} cannot be loaded"


@dataclass(frozen=True, kw_only=True)
class Driver:
    """What the driver says.

    Attributes:
        missing: Why no GPU of NVIDIA's can be used, with what to do; "" if one can.
        cuda: Newest CUDA that it runs, major and minor; zeros if there is no driver.
        gpus: Names of its GPUs that CUDA may use.
    """

    missing: str
    cuda: tuple[int, int] = (0, 0)
    gpus: tuple[str, ...] = ()


@cache
def driver_version() -> tuple[int, int] | None:
    """Newest CUDA that the driver runs, major and minor; None if there is no driver.

    The driver is not started for that: one that is broken might take the process with it.
    """
    library = _load()
    return None if library is None else _version(library)


def nvidia_driver() -> Driver:
    """Start the driver, and ask what it has."""
    library = _load()
    return Driver(missing=NO_DRIVER) if library is None else ask(library)


def ask(library: Any) -> Driver:
    """What the library of a driver says.

    Args:
        library: libcuda, loaded by ctypes.
    """
    cuda = _version(library)
    failed = library.cuInit(0)
    if failed == _NO_DEVICE:
        reason = "the NVIDIA driver has no GPU to give: is CUDA_VISIBLE_DEVICES empty?"
        return Driver(missing=reason, cuda=cuda)
    count = ctypes.c_int(0)
    failed = failed or library.cuDeviceGetCount(ctypes.byref(count))
    if failed:
        reason = f"the NVIDIA driver does not start (CUDA error {failed}); see nvidia-smi"
        return Driver(missing=reason, cuda=cuda)
    return Driver(
        missing="", cuda=cuda, gpus=tuple(_name(library, at) for at in range(count.value))
    )


def gpus_in_sight() -> list[str]:
    """What tells the GPUs that CUDA may use from others, to key what was found with them.

    Each one's name and number, and what the environment says of which to take. The driver is not
    started for that: NVML needs none of CUDA.
    """
    library = _load(_MANAGEMENT)
    listed = [] if library is None else listed_gpus(library)
    return [*listed, *(f"{name}={os.environ.get(name)}" for name in _CHOOSING)]


def listed_gpus(library: Any) -> list[str]:
    """Name and number of each GPU that NVML lists; none if it does not start.

    Args:
        library: libnvidia-ml, loaded by ctypes.
    """
    if library.nvmlInit_v2():
        return []
    try:
        count = ctypes.c_uint(0)
        library.nvmlDeviceGetCount_v2(ctypes.byref(count))
        return [_listed(library, at) for at in range(count.value)]
    finally:
        library.nvmlShutdown()


def _listed(library: Any, at: int) -> str:
    device, text = ctypes.c_void_p(), ctypes.create_string_buffer(_LONGEST)
    if library.nvmlDeviceGetHandleByIndex_v2(at, ctypes.byref(device)):
        return "not ours"  # of another container
    parts = []
    for ask_for in (library.nvmlDeviceGetName, library.nvmlDeviceGetUUID):
        parts.append("" if ask_for(device, text, _LONGEST) else text.value.decode())
    return " ".join(parts)


def _name(library: Any, at: int) -> str:
    device, text = ctypes.c_int(0), ctypes.create_string_buffer(_LONGEST)
    failed = library.cuDeviceGet(ctypes.byref(device), at)
    failed = failed or library.cuDeviceGetName(text, _LONGEST, device)
    return "a GPU without a name" if failed else text.value.decode()


def _load(library: str = _LIBRARY) -> Any:
    try:
        return ctypes.CDLL(library)
    except OSError:
        return None


def _version(library: Any) -> tuple[int, int]:
    number = ctypes.c_int(0)
    if library.cuDriverGetVersion(ctypes.byref(number)):
        return (0, 0)
    return (number.value // 1000, number.value % 1000 // 10)
