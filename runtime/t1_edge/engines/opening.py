"""Opening one format's files on one device, and what is installed for it."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from t1_edge.build import GGUF_MODEL, Build, Decoder, Format
from t1_edge.engines.base import Engine
from t1_edge.engines.devices import DeviceName, obstacle
from t1_edge.engines.llama_devices import library_file
from t1_edge.engines.places import PLACES, READER
from t1_edge.errors import DeviceError, EngineError, MissingExtraError
from t1_edge.machine import available_threads, check_threads

_PACKAGES: Final[dict[Format, tuple[str, str, str]]] = {
    "onnx": ("onnxruntime", "onnxruntime", "cpu"),
    "gguf": ("llama_cpp", "llama-cpp-python", "gguf"),
}
"""Module, distribution and extra of each format's engine, the preferred one first."""


def open_format(
    directory: Path,
    format: Format,
    decoder: Decoder,
    *,
    exact: bool,
    device: DeviceName = "cpu",
    threads: int | None = None,
) -> Engine:
    """Open one format's files, whether or not they are part of a build yet.

    Args:
        directory: Where the files are.
        format: Which of them.
        decoder: The shape of the model.
        exact: Spend time on float32 wherever the engine would round: for float builds.
        device: Where to run them.
        threads: CPU threads; those of `available_threads` if None.

    Raises:
        DeviceError: If the device cannot run the format here.
        EngineError: If the library cannot be loaded, or refuses the files.
        InputError: If there are no threads, or more than processors.
        MissingExtraError: If the library is not installed.
    """
    threads = available_threads() if threads is None else threads
    check_threads(threads)
    load_library(format)
    reason = obstacle(format, device)
    if reason:
        raise DeviceError(f"{format} cannot run on {device}: {reason}")
    if format == "onnx" and device == "webgpu":
        from t1_edge.engines.webgpu import WebGpuEngine

        return WebGpuEngine(directory, decoder, threads=threads)
    if format == "onnx":
        from t1_edge.engines.onnx import OnnxEngine

        return OnnxEngine(directory, decoder, threads=threads, place=PLACES[device])
    from t1_edge.engines.llama import LlamaEngine

    model = directory / GGUF_MODEL
    return LlamaEngine(model, decoder, threads=threads, device=device, exact=exact)


def open_documents(directory: Path, decoder: Decoder, *, threads: int | None = None) -> Engine:
    """Open the graph that reads documents; its sessions have no logits.

    Args:
        directory: Where it is.
        decoder: The shape of the model.
        threads: CPU threads; those of `available_threads` if None.

    Raises:
        EngineError: If ONNX Runtime cannot be loaded, or refuses the files.
        MissingExtraError: If ONNX Runtime is not installed.
    """
    load_library("onnx")
    from t1_edge.engines.onnx import OnnxEngine

    threads = available_threads() if threads is None else threads
    return OnnxEngine(directory, decoder, threads=threads, place=READER)


def require(format: Format) -> None:
    """Check that the library which drives a format is installed.

    Raises:
        MissingExtraError: If it is not.
    """
    module, distribution, extra = _PACKAGES[format]
    if find_spec(module) is None:
        raise MissingExtraError(distribution, extra)


def load_library(format: Format) -> None:
    """Import a format's library: the first time may fail in many ways, later ones do not.

    Raises:
        EngineError: If it cannot be loaded.
        MissingExtraError: If it is not installed.
    """
    require(format)
    module, distribution, _ = _PACKAGES[format]
    try:
        # What is left of a wheel that was removed in part has no version.
        _ = import_module(module).__version__
    except Exception as e:  # a missing shared object, another processor's build, ...
        raise EngineError(
            f"{distribution} is installed but cannot be loaded: {e}; install it again"
        ) from e


def library_of(format: Format) -> str:
    """The name and version of a format's library, which must be installed.

    Raises:
        EngineError: If it cannot be loaded.
        MissingExtraError: If it is not installed.
    """
    load_library(format)
    module, distribution, _ = _PACKAGES[format]
    return f"{distribution} {import_module(module).__version__}"


def module_of(format: Format) -> str:
    """What Python calls a format's library."""
    return _PACKAGES[format][0]


def installed_as(format: Format) -> list[object]:
    """What tells an installation of a format's library from others, to key what was found with it.

    Its version, and where and when it was put: llama.cpp may be compiled otherwise.

    Raises:
        EngineError: If it cannot be loaded.
        MissingExtraError: If it is not installed.
    """
    library = library_of(format)
    module, *_ = _PACKAGES[format]
    file = library_file() if format == "gguf" else Path(str(import_module(module).__file__))
    return [library, str(file), file.stat().st_mtime_ns]


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
