"""NVIDIA's driver, asked through its own library, which comes with the driver and nothing else.

The functions and their results are those of CUDA's driver API, cuda.h.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

_LIBRARY: Final = "libcuda.so.1"
_NO_DEVICE: Final = 100  # CUDA_ERROR_NO_DEVICE

NO_DRIVER: Final = f"there is no NVIDIA driver: {_LIBRARY} cannot be loaded"


@dataclass(frozen=True, kw_only=True)
class Driver:
    """What the driver says.

    Attributes:
        missing: Why no GPU of NVIDIA's can be used, with what to do; "" if one can.
        cuda: Newest CUDA that it runs, major and minor; zeros if there is no driver.
        devices: How many GPUs it has.
    """

    missing: str
    cuda: tuple[int, int] = (0, 0)
    devices: int = 0


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
    return Driver(missing="", cuda=cuda, devices=count.value)


def _load() -> Any:
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError:
        return None


def _version(library: Any) -> tuple[int, int]:
    number = ctypes.c_int(0)
    if library.cuDriverGetVersion(ctypes.byref(number)):
        return (0, 0)
    return (number.value // 1000, number.value % 1000 // 10)
