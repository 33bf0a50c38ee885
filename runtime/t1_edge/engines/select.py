"""Which engine drives a build, and on what. An asked-for device that cannot run is an error."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, get_args

from t1_edge.build import Build, Format
from t1_edge.engines.base import Engine
from t1_edge.engines.devices import DEVICES, DeviceName, obstacle
from t1_edge.engines.opening import (
    installed_as,
    load_library,
    open_documents,
    open_format,
    require,
    usable_formats,
)
from t1_edge.engines.probe import Probe, ran_before
from t1_edge.engines.race import Opener, race
from t1_edge.errors import BuildError, DeviceError, InputError
from t1_edge.golden import check_once
from t1_edge.machine import available_threads

EngineChoice = Literal["auto", "onnx", "gguf"]
DocumentGraph = Literal["auto", "documents", "everything"]
ReadingGraph = Literal["documents", "everything"]
Device = Literal["auto", "cpu", "cuda", "metal", "webgpu"]


_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An engine and a device for a build, and why these.

    Attributes:
        format: Whose engine.
        device: Where it runs.
        reason: Why, for people; with what stood in the way of a device that should have run.
        seconds: What the engines that could have run there take for the same work, where they
            were measured.
    """

    format: Format
    device: DeviceName
    reason: str
    seconds: dict[str, float]


def open_engine(
    build: Build,
    *,
    engine: EngineChoice = "auto",
    device: Device = "auto",
    threads: int | None = None,
    documents: DocumentGraph = "auto",
    budget: int | None = None,
) -> Engine:
    """Open a build with what `choose` chooses.

    Args:
        build: The build.
        engine: Which format to drive.
        device: Where to run it.
        threads: CPU threads; those of `available_threads` if None.
        documents: Which graph is to read documents: not what is opened here.
        budget: Tokens of the thoughts that are to come; the contract's if None.

    Raises:
        BuildError: If the build does not hold the format.
        DeviceError: If the device cannot run here.
        EngineError: If the library cannot be loaded, or refuses the files.
        InputError: If there is no such engine or device, there are no threads or more than
            processors, or the budget is negative.
        MissingExtraError: If no library is installed that could drive the build.
    """
    threads = available_threads() if threads is None else threads
    chosen = choose(
        build, engine=engine, device=device, threads=threads, documents=documents, budget=budget
    )
    return _open(build, chosen.format, chosen.device, threads)


def reading_graph(
    build: Build, running: Format, device: str, *, engine: EngineChoice, asked: DocumentGraph
) -> ReadingGraph:
    """Which graph reads documents: by itself the one for documents wherever it runs.

    It is ONNX Runtime's on the CPU, and stands beside any engine there that was not asked for by
    name: its vectors are the nearest to the float weights, and soonest there.

    Args:
        build: The build.
        running: Whose engine queries have.
        device: Where that runs.
        engine: Which was asked for.
        asked: Which graph was; "auto" if none.

    Raises:
        BuildError: If the build has no graph that is asked for.
        DeviceError: If it is asked for, and what runs is not on the CPU.
        InputError: If there is no such graph.
        MissingExtraError: If it is asked for, and ONNX Runtime is not installed.
    """
    if asked not in get_args(DocumentGraph):
        raise InputError(f"no graph {asked!r}; known are {', '.join(get_args(DocumentGraph))}")
    if asked == "documents":
        _require_graph(build, device)
        return "documents"
    if asked == "everything" or not (build.has_documents_graph and device == "cpu"):
        return "everything"
    beside = engine == "auto" and "onnx" in usable_formats(build)
    return "documents" if running == "onnx" or beside else "everything"


def open_reader(build: Build, *, threads: int) -> Engine:
    """Open the graph for documents of a build that has one.

    Args:
        build: The build.
        threads: CPU threads.

    Raises:
        BuildError: If the build's golden rows are damaged.
        EngineError: If ONNX Runtime refuses the graph, or fails, or golden vectors do not come out.
        MissingExtraError: If ONNX Runtime is not installed.
    """
    reader = open_documents(build.path, build.manifest.decoder, threads=threads)
    try:
        check_once(build, reader)
    except BaseException:
        reader.close()
        raise
    return reader


def _require_graph(build: Build, device: str) -> None:
    if not build.has_documents_graph:
        raise BuildError(f"{build.path} has no graph for documents: export it with --documents")
    if device != "cpu":
        raise DeviceError(
            f"the graph for documents is ONNX Runtime's on the CPU, and the build runs on {device} "
            'here: leave it out, or ask for device="cpu"'
        )
    require("onnx")


def choose(
    build: Build,
    *,
    engine: EngineChoice = "auto",
    device: Device = "auto",
    threads: int | None = None,
    documents: DocumentGraph = "auto",
    budget: int | None = None,
    again: bool = False,
    probes: Sequence[Probe] = (),
) -> Choice:
    """Choose an engine and a device for a build.

    "auto" takes the first of CUDA, Metal and CPU on which something ran, and there the engine that
    a short measurement found faster, at queries that think as far as the budget, and at documents
    where no graph of their own reads these; it is made once for a build and machine.

    Args:
        build: The build.
        engine: Which format to drive; "auto" may take any whose library is installed.
        device: Where to run it; "auto" may take any.
        threads: CPU threads; those of `available_threads` if None.
        documents: Which graph is to read documents.
        budget: Tokens of the thoughts that are to come; the contract's if None.
        again: Measure even if it was measured before.
        probes: What came of tiny builds just now, also on the CPU; of others, what is kept counts.

    Raises:
        BuildError: If the build does not hold the format.
        DeviceError: If the device cannot run here; with each engine's reason.
        EngineError: If a library cannot be loaded, or refuses the files.
        InputError: If there is no such engine or device, there are no threads or more than
            processors, or the budget is negative.
        MissingExtraError: If no library is installed that could drive the build.
    """
    if device not in get_args(Device):
        raise InputError(f"no device {device!r}; known are {', '.join(get_args(Device))}")
    if engine not in get_args(EngineChoice):
        raise InputError(f"no engine {engine!r}; known are {', '.join(get_args(EngineChoice))}")
    thought = build.manifest.contract.budget_for(budget)
    threads = available_threads() if threads is None else threads
    formats = _formats(build, engine)
    for format in formats:
        load_library(format)
    at, able, passed = _first_device(build, formats, device, probes)
    if len(able) == 1:
        [only] = able
        why = _why_only(build, engine, at)
        return Choice(format=only, device=at, reason=f"{why}{passed}", seconds={})
    contestants: dict[str, Opener] = {
        format: partial(_opened, build=build, format=format, device=at, threads=threads)
        for format in able
    }
    key = [at, threads, [installed_as(format) for format in able]]
    # Where ONNX Runtime is among those that could run, it reads documents beside any of them.
    elsewhere = build.has_documents_graph and at == "cpu" and documents != "everything"
    paces = race(build, contestants, key, documents=not elsewhere, again=again)
    seconds: dict[str, float] = {format: paces[format].seconds(thought) for format in able}
    fastest = min(able, key=seconds.__getitem__)
    figures = ", ".join(f"{format} {seconds[format]:.3f} s" for format in able)
    work = "a query" if elsewhere else "a query and two documents"
    why = f"the faster on {at} for {work} with a budget of {thought}: {figures}"
    return Choice(format=fastest, device=at, reason=f"{why}{passed}", seconds=seconds)


def _open(build: Build, format: Format, device: DeviceName, threads: int) -> Engine:
    manifest = build.manifest
    exact = manifest.profile == "float"
    return open_format(
        build.path, format, manifest.decoder, exact=exact, device=device, threads=threads
    )


def _opened(
    build: Build, format: Format, device: DeviceName, threads: int
) -> AbstractContextManager[Engine]:
    return closing(_open(build, format, device, threads))


def _formats(build: Build, engine: EngineChoice) -> list[Format]:
    """Those of a build that may be driven."""
    held = build.manifest.formats
    if engine == "auto":
        return usable_formats(build)
    if engine not in held:
        raise BuildError(f"{build.path} holds {', '.join(held)}, not {engine}: export it again")
    return [engine]


def _first_device(
    build: Build, formats: Sequence[Format], device: Device, probes: Sequence[Probe]
) -> tuple[DeviceName, list[Format], str]:
    """The first device that is allowed and can run, the formats that it can run, what failed."""
    passed = ""
    reasons: list[str] = []
    fresh = {(one.format, one.device): one for one in probes}
    for at in DEVICES if device == "auto" else (device,):
        against = {format: _against(build, format, at) for format in formats}
        if device == "auto":
            clear = [format for format, reason in against.items() if reason is None]
            tried = {format: _failure(format, at, fresh) for format in clear}
            failed = {format: reason for format, reason in tried.items() if reason is not None}
            passed += "".join(f"; not {format} on {at}: {why}" for format, why in failed.items())
            against |= failed
        able = [format for format, reason in against.items() if reason is None]
        if able:
            if passed:
                _LOG.warning("%s runs on %s%s", build.path, at, passed)
            return at, able, passed
        reasons = [f"{format}: {reason}" for format, reason in against.items()]
    raise DeviceError(f"{build.path} cannot run on {device}: {'; '.join(reasons)}")


def _failure(
    format: Format, device: DeviceName, fresh: Mapping[tuple[Format, DeviceName], Probe]
) -> str | None:
    """Why the tiny build did not run on a device; None if it did, or was not tried on a CPU."""
    found = fresh.get((format, device))
    if found is None and device != "cpu":
        found = ran_before(format, device)
    return None if found is None or found.ran else found.reason


def _against(build: Build, format: Format, device: DeviceName) -> str | None:
    """What keeps a build's format from a device here: the machine, the build, or both."""
    reasons = [obstacle(format, device)]
    if format == "onnx" and device == "cuda" and not build.has_cuda_graph:
        reasons.append("the build has no graph for CUDA: export it again with --cuda")
    return "; and ".join(filter(None, reasons)) or None


def _why_only(build: Build, engine: EngineChoice, device: DeviceName) -> str:
    if engine != "auto":
        return f"{engine} was asked for"
    if len(build.manifest.formats) == 1:
        return "the build holds no other format"
    return f"of the engines that are installed, no other runs on {device}"
