"""What this machine and its libraries can run, found by running it."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from t1_edge import __version__
from t1_edge.bandwidth import read_bandwidth
from t1_edge.build import Build, Format
from t1_edge.cache import cache_dir, cache_obstacle, cached_builds, find_build
from t1_edge.engines.devices import BY_NAME, DEVICES, DeviceName
from t1_edge.engines.installed import Installed, installed
from t1_edge.engines.nvidia import nvidia_driver
from t1_edge.engines.probe import Probe, keep, probe
from t1_edge.engines.select import ReadingGraph, choose, reading_graph
from t1_edge.errors import T1Error
from t1_edge.machine import Processor, free_memory, processor, total_memory

_FORMATS: Final[tuple[Format, ...]] = ("onnx", "gguf")


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """What "auto" takes for a build.

    Attributes:
        build: As it was asked for.
        format: Whose engine; "" if none can run it.
        device: Where; "" if nowhere.
        documents: Which graph reads documents; "" if none.
        reason: Why, or why not.
        seconds: What engines take for the same work, measured now.
    """

    build: str
    format: Format | str
    device: DeviceName | str
    documents: ReadingGraph | str
    reason: str
    seconds: dict[str, float]


class KeptBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A build in the cache.

    Attributes:
        name: Its directory's.
        path: Where it is.
        size: Bytes of all its files; 0 if they cannot be listed.
        problem: What is wrong with it; "" if every file has its hash.
    """

    name: str
    path: str
    size: int
    problem: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What `examine` found.

    Attributes:
        versions: Of t1-edge, Python and the system.
        processor: The machine's.
        total_memory: Bytes.
        free_memory: Bytes that are free, or would be if asked for.
        read_bandwidth: Bytes a second that the processor's threads read together, measured now:
            the ceiling of thinking.
        nvidia: What NVIDIA's driver says.
        engines: What is installed of each engine.
        probes: For each format and device, whether a tiny build ran there.
        chosen: What "auto" takes.
        cache: Where the cache is.
        cache_obstacle: What keeps it from being written, so that nothing new is kept: what is
            measured here will be measured again; "" if nothing does.
        builds: In the cache.
    """

    versions: dict[str, str]
    processor: Processor
    total_memory: int
    free_memory: int
    read_bandwidth: float
    nvidia: str
    engines: list[Installed]
    probes: list[Probe]
    chosen: Chosen
    cache: str
    cache_obstacle: str
    builds: list[KeptBuild]

    @property
    def healthy(self) -> bool:
        """Whether something runs, and no build in the cache is damaged."""
        return any(probe.ran for probe in self.probes) and not any(
            build.problem for build in self.builds
        )


def examine(build: str, *, budget: int | None = None) -> Report:
    """Look at this machine; takes some seconds, and more for large builds, whose files are read.

    Args:
        build: Name or path of the build that "auto" is asked about; it may be missing.
        budget: Tokens of the thoughts that are to come; the build's if None.

    Raises:
        InputError: If `OMP_NUM_THREADS` is not a number.
    """
    machine = processor()
    probes = [probe(format, device) for device in (*DEVICES, *BY_NAME) for format in _FORMATS]
    loaded = {one.format for one in probes if one.library}
    for one in probes:
        if one.format in loaded:
            keep(one)
    return Report(
        versions={
            "t1-edge": __version__,
            "python": platform.python_version(),
            "system": platform.platform(),
        },
        processor=machine,
        total_memory=total_memory(),
        free_memory=free_memory(),
        read_bandwidth=read_bandwidth(machine.threads),
        nvidia=_nvidia(),
        engines=[installed(format, loads=format in loaded) for format in _FORMATS],
        probes=probes,
        chosen=_chosen(build, budget, probes),
        cache=str(cache_dir()),
        cache_obstacle=cache_obstacle(),
        builds=[_kept(path) for path in cached_builds()],
    )


def _nvidia() -> str:
    driver = nvidia_driver()
    cuda = ".".join(map(str, driver.cuda))
    return driver.missing or f"{', '.join(driver.gpus)}; the driver gives CUDA {cuda}"


def _chosen(build: str, budget: int | None, probes: Sequence[Probe]) -> Chosen:
    try:
        opened = Build(find_build(build))
        found = choose(opened, budget=budget, again=True, probes=probes)
    except T1Error as e:
        return Chosen(build=build, format="", device="", documents="", reason=str(e), seconds={})
    return Chosen(
        build=build,
        format=found.format,
        device=found.device,
        documents=reading_graph(opened, found.format, found.device, engine="auto", asked="auto"),
        reason=found.reason,
        seconds=found.seconds,
    )


def _kept(path: Path) -> KeptBuild:
    size, problem = 0, ""
    try:
        build = Build(path)
        size = sum(entry.size for entry in build.manifest.files.values())
        build.check_hashes()
    except T1Error as e:
        problem = str(e)
    return KeptBuild(name=path.name, path=str(path), size=size, problem=problem)
