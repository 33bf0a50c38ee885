"""The libraries of CUDA that a wheel of ONNX Runtime is linked to, and which of them are missing.

A wheel is for one major version of CUDA, and brings none of its libraries: they come with pip
(`nvidia-*`), or with the system. Where one is missing ONNX Runtime warns, and runs on the CPU.
"""

import ctypes
import io
import re
import warnings
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Final

from t1_edge.engines.elf import linked

PROVIDER: Final = "libonnxruntime_providers_cuda.so"

_OF_CUDA: Final = re.compile(r"lib(cu|nv).*\.so\.\d+")
_DRIVER: Final = "libcuda.so.1"
_RUNTIME: Final = "libcudart.so."
_MAJORS: Final = range(11, 17)
"""Versions of CUDA that may be here in another one's place."""


@cache
def preload() -> None:
    """Load what pip has brought of CUDA, before a session is made: the loader does not look there.

    What `onnxruntime.preload_dlls` prints of what it misses is `libraries_obstacle`'s to say.
    """
    import onnxruntime

    load = getattr(onnxruntime, "preload_dlls", None)  # since 1.21
    if load is not None:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            load()


def libraries_obstacle(packages: Path) -> str | None:
    """Which libraries of CUDA the wheel of ONNX Runtime needs and the loader does not find.

    With what to do; None if there are all, or nothing can be known: of other systems than Linux.

    Args:
        packages: Where pip has put ONNX Runtime.
    """
    import onnxruntime

    provider = packages / "onnxruntime" / "capi" / PROVIDER
    if not provider.is_file():
        return None
    preload()
    missing = missing_libraries(provider)
    if not missing:
        return None
    version, needed = onnxruntime.__version__, linked(provider).needed
    others = [at for at in cuda_here(packages) if f"{_RUNTIME}{at}" not in needed]
    instead = f"; those here are of {', '.join(f'CUDA {at}' for at in others)}" if others else ""
    return (
        f"onnxruntime {version} is linked to {', '.join(missing)}, which cannot be loaded{instead}"
        f": pip install 'onnxruntime-gpu[cuda,cudnn]=={version}' brings them, or name their folder "
        "in LD_LIBRARY_PATH"
    )


def missing_libraries(provider: Path) -> list[str]:
    """The libraries of CUDA that a shared object is linked to and that cannot be loaded.

    The driver's is not among them; see `t1_edge.engines.nvidia`.

    Args:
        provider: The shared object.
    """
    found = linked(provider)
    wanted = [name for name in found.needed if _OF_CUDA.fullmatch(name) and name != _DRIVER]
    return [
        name
        for name in wanted
        if not (_loads(name) or any(_loads(str(folder / name)) for folder in found.folders))
    ]


def cuda_here(packages: Path) -> list[int]:
    """Major versions of CUDA whose runtime pip has brought, or the loader finds.

    Args:
        packages: Where pip puts packages.
    """
    brought = {path.name for path in packages.glob(f"nvidia/*/lib/{_RUNTIME}*")}
    return [
        major
        for major in _MAJORS
        if f"{_RUNTIME}{major}" in brought or _loads(f"{_RUNTIME}{major}")
    ]


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
