"""The machine: its processor, its memory, and how many threads are right for it."""

import ctypes
import os
import platform
import sys
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import psutil

from t1_edge.errors import InputError

THREADS_VARIABLE: Final = "OMP_NUM_THREADS"

_CPUS: Final = Path("/sys/devices/system/cpu")
_CPU_INFO: Final = Path("/proc/cpuinfo")
_PRODUCTS: Final = ("amx_", "avx_vnni", "avx512_vnni", "avx512_bf16", "asimddp", "i8mm", "bf16")
"""How instructions for products of 8 bits or 16 begin; the last three are ARM's."""

_STATUS: Final = Path("/proc/self/status")
_MEMORY_LIMITS: Final = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)
_QUOTAS: Final = (Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))


@dataclass(frozen=True, kw_only=True)
class Processor:
    """A processor, as far as it concerns the product of matrices.

    Attributes:
        name: As the system gives it; "" where it does not.
        architecture: "x86_64", "arm64", ...
        features: Groups of vector instructions that it has, as numpy names them, and which of
            those for products of 8 bits or 16, as Linux names them.
        logical: Processors that this process may use.
        threads: Of them, what engines take by default; see `available_threads`.
    """

    name: str
    architecture: str
    features: tuple[str, ...]
    logical: int
    threads: int


def processor() -> Processor:
    """The processor of this machine.

    Raises:
        InputError: If `OMP_NUM_THREADS` is not a number.
    """
    found = _features()
    return Processor(
        name=_processor_name(),
        architecture=platform.machine(),
        features=(*found, *(flag for flag in _products() if flag.upper() not in found)),
        logical=len(_allowed()),
        threads=available_threads(),
    )


def kernels() -> tuple[str, ...]:
    """What decides which kernels run on a machine, and how fast: to key what was found on it."""
    return (_processor_name(), platform.machine(), *_features())


def has_vnni() -> bool:
    """Whether this is an x86 processor known to sum products of 8 bits up in 32.

    Linux says so; elsewhere a processor may have VNNI and not be known to.
    """
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(_field(_CPU_INFO, "flags").split())


def available_threads() -> int:
    """CPU threads that engines take by default.

    `OMP_NUM_THREADS` where it is set; else one for each of `usable_cores`: a second on a core would
    wait for the first's multipliers, and beyond a container's quota of time all stand still.

    Raises:
        InputError: If `OMP_NUM_THREADS` is not a number, or below 1.
    """
    asked = os.environ.get(THREADS_VARIABLE)
    if asked:
        first = asked.split(",")[0].strip()  # of nested levels, the outermost
        if not first.isdecimal() or int(first) < 1:
            raise InputError(f"{THREADS_VARIABLE} is {asked!r}: give a number of threads, or none")
        return int(first)
    return usable_cores()


def check_threads(threads: int) -> None:
    """Whether an engine may be given so many threads.

    More than there are processors would wait for one another in loops: minutes for a text.

    Raises:
        InputError: If they are fewer than 1, or more than the processors that this process may use.
    """
    if threads < 1:
        raise InputError(f"an engine needs 1 thread or more, not {threads}")
    most = len(_allowed())
    if threads > most:
        raise InputError(
            f"{threads} threads are more than the {most} processors that this process may use: "
            f"ask for {most} at most, in {THREADS_VARIABLE} too"
        )


def usable_cores() -> int:
    """Cores that this process may use: its affinity mask counts, and a container's quota."""
    return max(1, min(_cores(), _quota()))


def free_memory() -> int:
    """Bytes that a process may take before others are swapped out, or its container is full."""
    return min(int(psutil.virtual_memory().available), _room_in_container())


def total_memory() -> int:
    """Bytes of memory."""
    return int(psutil.virtual_memory().total)


def resident_bytes() -> int:
    """Memory that this process has resident now, in bytes.

    glibc's heaps give back the pages that nothing is on before: how many they hold is chance
    (docs/LOG.md, "What the soak counts").
    """
    with suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def open_files() -> int:
    """File descriptors that this process has now."""
    return int(psutil.Process().num_fds())


def peak_resident_bytes() -> int:
    """Most memory that this process ever had resident, in bytes."""
    import resource

    # Linux lets a process begin with the peak of the one that made it, in getrusage alone.
    if found := _field(_STATUS, "VmHWM"):
        return int(found.removesuffix("kB")) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _allowed() -> Collection[int]:
    """Logical processors that this process may use, as far as the system says."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _cores() -> int:
    """Cores among the logical processors that this process may use."""
    if not hasattr(os, "sched_getaffinity"):  # nor does the system list siblings
        return psutil.cpu_count(logical=False) or 1
    return len({_siblings(logical) for logical in _allowed()})


def _siblings(logical: int) -> str:
    """The logical processors of one core, as Linux lists them; by itself where it does not."""
    with suppress(OSError):
        return (_CPUS / f"cpu{logical}/topology/thread_siblings_list").read_text().strip()
    return str(logical)


def _room_in_container() -> int:
    """Bytes that a container may still take; very many without a limit."""
    for limit, used in _MEMORY_LIMITS:
        with suppress(OSError, ValueError):  # "max" is no number: no limit
            return max(0, int(limit.read_text()) - int(used.read_text()))
    return sys.maxsize


def _features() -> tuple[str, ...]:
    """Groups of vector instructions; numpy leaves out the lists that are empty."""
    found = np.show_config(mode="dicts").get("SIMD Extensions", {})
    return (*found.get("baseline", ()), *found.get("found", ()))


def _products() -> list[str]:
    """Instructions that kernels for quantized weights are chosen by; none where nobody says."""
    said = f"{_field(_CPU_INFO, 'flags')} {_field(_CPU_INFO, 'Features')}".split()
    return sorted(flag for flag in set(said) if flag.startswith(_PRODUCTS))


def _quota() -> int:
    """Whole processors' time that a container may use, 1 at least; very many without a quota."""
    for path in _QUOTAS:
        with suppress(OSError, ValueError):
            numbers = path.read_text().split()
            if len(numbers) == 1:  # cgroup v1 has the period in a file of its own
                numbers.append(path.with_name("cpu.cfs_period_us").read_text())
            quota, period = (int(number) for number in numbers)  # "max" is no number: no quota
            if quota > 0:
                return max(1, quota // period)
    return sys.maxsize


def _processor_name() -> str:
    return _field(_CPU_INFO, "model name") or platform.processor()


def _field(path: Path, name: str) -> str:
    """The first value of a name in a file of /proc; "" without one, or without /proc."""
    with suppress(OSError):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(name):
                return line.partition(":")[2].strip()
    return ""
