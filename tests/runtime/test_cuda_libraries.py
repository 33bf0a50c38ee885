"""The libraries of CUDA that a wheel is linked to: which are missing, and that pip's are loaded."""

import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from t1_edge.build import Build
from t1_edge.engines import cuda_libraries, devices, select
from t1_edge.engines.elf import linked
from t1_edge.engines.onnx import OnnxEngine
from t1_edge.engines.places import PLACES
from t1_edge.errors import DeviceError

# Of the wheel onnxruntime-gpu 1.31.1, and of older ones, which were linked to cuDNN.
CUDA_13 = (
    "libcublasLt.so.13",
    "libcublas.so.13",
    "libcurand.so.10",
    "libcudart.so.13",
    "libcuda.so.1",
    "libstdc++.so.6",
    "libc.so.6",
)
CUDA_12 = ("libcublasLt.so.12", "libcublas.so.12", "libcudnn.so.9", "libcudart.so.12", "libc.so.6")


def shared_object(needed: Sequence[str], run_path: str = "") -> bytes:
    """An ELF file that is linked to libraries, and holds nothing else; it lies at 0x10000."""
    strings, entries = b"\0", []
    for tag, text in [(1, name) for name in needed] + [(29, run_path)] * bool(run_path):
        entries.append((tag, len(strings)))
        strings += text.encode() + b"\0"
    headers = 64 + 2 * 56
    dynamic = headers + len(strings)
    entries += [(5, 0x10000 + headers), (0, 0)]
    table = b"".join(struct.pack("<qQ", *entry) for entry in entries)
    size = dynamic + len(table)
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )
    load = struct.pack("<IIQQQQQQ", 1, 4, 0, 0x10000, 0, size, size, 0x1000)
    where = struct.pack("<IIQQQQQQ", 2, 4, dynamic, 0x10000 + dynamic, 0, len(table), len(table), 8)
    return head + load + where + strings + table


Wheel = Callable[..., Path]


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """Puts a provider among pip's packages, where some libraries load: wheel(CUDA_13, loads=())."""

    def make(needed: Sequence[str], *, loads: Sequence[str], run_path: str = "") -> Path:
        folder = tmp_path / "onnxruntime" / "capi"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / cuda_libraries.PROVIDER).write_bytes(shared_object(needed, run_path))
        monkeypatch.setattr(cuda_libraries, "_loads", {*loads}.__contains__)
        monkeypatch.setattr(devices, "_packages", lambda: tmp_path)
        return tmp_path

    return make


@pytest.mark.parametrize("needed", [CUDA_12, CUDA_13, ()])
def test_what_a_file_is_linked_to_is_read(needed: Sequence[str], tmp_path: Path) -> None:
    file = tmp_path / "some.so"
    file.write_bytes(shared_object(needed, "/opt/cuda/lib:$ORIGIN/../lib:${ORIGIN}"))
    found = linked(file)
    assert found.needed == tuple(needed)
    assert found.folders == (Path("/opt/cuda/lib"), tmp_path / ".." / "lib", tmp_path)
    file.write_bytes(b"\xcf\xfa\xed\xfe" + bytes(60))  # of a Mac
    assert linked(file).needed == ()


@pytest.mark.skipif(sys.platform != "linux", reason="shared objects of other systems are no ELF")
def test_a_real_library_is_read() -> None:
    from t1_edge.engines.llama_devices import library_file

    library = library_file()
    found = linked(library)
    assert "libc.so.6" in found.needed
    assert [name for name in found.needed if name.startswith("libggml-base.so")]
    assert library.parent in [folder.resolve() for folder in found.folders]


@pytest.mark.parametrize(
    ("needed", "loads", "reason"),
    [
        (
            CUDA_13,
            ("libcublasLt.so.12", "libcublas.so.12", "libcurand.so.10", "libcudart.so.12"),
            "libcublasLt.so.13, libcublas.so.13, libcudart.so.13, which cannot be loaded; those "
            "here are of CUDA 12: pip install 'onnxruntime-gpu[cuda,cudnn]==1.32.0'",
        ),
        (
            CUDA_12,
            ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcudnn.so.9"),
            "libcublasLt.so.12, libcublas.so.12, libcudart.so.12, which cannot be loaded; those "
            "here are of CUDA 13: pip",
        ),
        (
            CUDA_12,
            ("libcublasLt.so.12", "libcublas.so.12", "libcudart.so.12"),
            "linked to libcudnn.so.9, which cannot be loaded: pip",
        ),
        (CUDA_13, (), "libcublasLt.so.13, libcublas.so.13, libcurand.so.10, libcudart.so.13, "),
    ],
)
def test_a_library_that_is_missing_is_named(
    wheel: Wheel,
    cuda_wheel: Callable[..., None],
    tiny_build: Callable[..., Build],
    needed: Sequence[str],
    loads: Sequence[str],
    reason: str,
) -> None:
    cuda_wheel((13, 0))
    wheel(needed, loads=loads)
    with pytest.raises(DeviceError, match=r"onnx: onnxruntime 1\.32\.0 is linked to") as found:
        select.open_engine(tiny_build("llama", "portable"), engine="onnx", device="cuda")
    assert reason in str(found.value)
    wheel(needed, loads=needed)
    assert devices.obstacle("onnx", "cuda") is None


def test_cuda_that_pip_has_brought_is_told_of_and_a_run_path_is_searched(wheel: Wheel) -> None:
    packages = wheel(CUDA_13, loads=["libcudart.so.11"])
    assert cuda_libraries.cuda_here(packages) == [11]
    for folder, name in (("cu13", "libcudart.so.13"), ("cuda_runtime", "libcudart.so.12")):
        (packages / "nvidia" / folder / "lib").mkdir(parents=True)
        (packages / "nvidia" / folder / "lib" / name).touch()
    assert cuda_libraries.cuda_here(packages) == [11, 12, 13]
    own = [f"/opt/cuda/{name}" for name in CUDA_13]
    wheel(CUDA_13, loads=own, run_path="/opt/cuda")
    assert cuda_libraries.libraries_obstacle(packages) is None


def test_what_pip_has_brought_is_loaded_before_a_session_is_made(
    tiny_build: Callable[..., Build],
    cuda_wheel: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import onnxruntime

    done: list[str] = []

    def preload_dlls() -> None:
        done.append("libraries")
        print("Failed to load libcublasLt.so.13")  # noqa: T201

    def session(*_: object, **__: object) -> None:
        done.append("session")
        raise RuntimeError("that is enough")

    build = tiny_build("llama", "portable")
    cuda_wheel((13, 0))
    cuda_libraries.preload.cache_clear()
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    for _ in range(2):
        with pytest.raises(Exception, match="that is enough"):
            OnnxEngine(build.path, build.manifest.decoder, threads=1, place=PLACES["cuda"])
    cuda_libraries.preload.cache_clear()
    assert done == ["libraries", "session", "session"]
    assert capsys.readouterr().out == ""
