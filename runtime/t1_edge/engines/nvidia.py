"""NVIDIA's driver, asked through its own library, which comes with the driver and nothing else.

The functions and their results are those of CUDA's driver API, cuda.h.
"""

import ctypes
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

_LIBRARY: Final = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


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
def nvidia_driver() -> Driver:
    """Ask the driver, once a process."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return Driver(missing=f"there is no NVIDIA driver: {_LIBRARY} cannot be loaded")
    return ask(library)


def ask(library: Any) -> Driver:
    """What the library of a driver says.

    Args:
        library: libcuda, loaded by ctypes.
    """
    number = ctypes.c_int(0)
    library.cuDriverGetVersion(ctypes.byref(number))
    cuda = (number.value // 1000, number.value % 1000 // 10)
    failed = library.cuInit(0)
    if failed:
        reason = f"the NVIDIA driver does not start (cuInit gives {failed}); see nvidia-smi"
        return Driver(missing=reason, cuda=cuda)
    library.cuDeviceGetCount(ctypes.byref(number))
    if not number.value:
        reason = "the NVIDIA driver has no GPU to give: is CUDA_VISIBLE_DEVICES empty?"
        return Driver(missing=reason, cuda=cuda)
    return Driver(missing="", cuda=cuda, devices=number.value)
