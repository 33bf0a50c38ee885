"""Which engine drives a build, and on what. An asked-for device that cannot run is an error."""

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal, get_args

from t1_edge.build import GGUF_MODEL, ONNX_GRAPH, Build, Decoder, Format
from t1_edge.engines.base import Engine
from t1_edge.errors import BuildError, DeviceError, EngineError, InputError, MissingExtraError

EngineChoice = Literal["auto", "onnx", "gguf"]
Device = Literal["auto", "cpu", "cuda", "metal"]

_PACKAGES: Final[dict[Format, tuple[str, str, str]]] = {
    "onnx": ("onnxruntime", "onnxruntime", "cpu"),
    "gguf": ("llama_cpp", "llama-cpp-python", "gguf"),
}
"""Module, distribution and extra of each format's engine, the preferred one first."""


def open_engine(
    build: Build,
    *,
    engine: EngineChoice = "auto",
    device: Device = "auto",
    threads: int | None = None,
) -> Engine:
    """Open a build.

    Args:
        build: The build.
        engine: Which format to drive; "auto" takes the first that the build holds and whose
            library is installed.
        device: "auto" and "cpu" run on the CPU; this version drives nothing else.
        threads: CPU threads; those the process may use if None.

    Raises:
        BuildError: If the build does not hold the format.
        DeviceError: If the device cannot run here.
        EngineError: If the library cannot be loaded, or refuses the files.
        InputError: If there is no such engine or device, or the number of threads is below 1.
        MissingExtraError: If no library is installed that could drive the build.
    """
    if device not in get_args(Device):
        raise InputError(f"no device {device!r}; known are {', '.join(get_args(Device))}")
    if engine not in get_args(EngineChoice):
        raise InputError(f"no engine {engine!r}; known are {', '.join(get_args(EngineChoice))}")
    if device not in ("auto", "cpu"):
        raise DeviceError(f"device {device!r} cannot run: this version of t1-edge drives the CPU")
    manifest = build.manifest
    return open_format(
        build.path,
        _choose(build, engine),
        manifest.decoder,
        exact=manifest.profile == "float",
        threads=threads,
    )


def open_format(
    directory: Path,
    format: Format,
    decoder: Decoder,
    *,
    exact: bool,
    threads: int | None = None,
) -> Engine:
    """Open one format's files, whether or not they are part of a build yet.

    Args:
        directory: Where the files are.
        format: Which of them.
        decoder: The shape of the model.
        exact: Spend time on float32 wherever the engine would round: for float builds.
        threads: CPU threads; those the process may use if None.

    Raises:
        EngineError: If the library cannot be loaded, or refuses the files.
        InputError: If the number of threads is below 1.
        MissingExtraError: If the library is not installed.
    """
    threads = available_threads() if threads is None else threads
    if threads < 1:
        raise InputError(f"an engine needs 1 thread or more, not {threads}")
    _load_library(format)
    if format == "onnx":
        from t1_edge.engines.onnx import OnnxEngine

        return OnnxEngine(directory / ONNX_GRAPH, decoder, threads=threads)
    from t1_edge.engines.llama import LlamaEngine

    return LlamaEngine(directory / GGUF_MODEL, decoder, threads=threads, exact=exact)


def require(format: Format) -> None:
    """Check that the library which drives a format is installed.

    Raises:
        MissingExtraError: If it is not.
    """
    module, distribution, extra = _PACKAGES[format]
    if find_spec(module) is None:
        raise MissingExtraError(distribution, extra)


def _load_library(format: Format) -> None:
    """Import a format's library: the first time may fail in many ways, later ones do not."""
    require(format)
    module, distribution, _ = _PACKAGES[format]
    try:
        import_module(module)
    except Exception as e:  # a missing shared object, another processor's build, ...
        raise EngineError(
            f"{distribution} is installed but cannot be loaded: {e}; install it again"
        ) from e


def installed_engines() -> list[Format]:
    """The formats whose library is installed, the preferred one first."""
    return [format for format, (module, *_) in _PACKAGES.items() if find_spec(module) is not None]


def installed_formats(build: Build) -> list[Format]:
    """See `installed_engines`; of them those that a build has."""
    return [format for format in installed_engines() if format in build.manifest.formats]


def usable_formats(build: Build) -> list[Format]:
    """See `installed_formats`; here at least one.

    Raises:
        MissingExtraError: If no library is installed that could drive the build.
    """
    found = installed_formats(build)
    if not found:
        _, distribution, extra = _PACKAGES[build.manifest.formats[0]]
        raise MissingExtraError(distribution, extra)
    return found


def available_threads() -> int:
    """CPU threads that this process may use: its affinity mask counts, a quota of time does not."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _choose(build: Build, engine: EngineChoice) -> Format:
    held = build.manifest.formats
    if engine != "auto":
        if engine not in held:
            raise BuildError(f"{build.path} holds {', '.join(held)}, not {engine}: export it again")
        return engine
    return usable_formats(build)[0]
