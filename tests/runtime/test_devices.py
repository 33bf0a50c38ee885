"""Devices: what stands in their way, what ran, what is taken, and that nothing falls back."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from ctypes import c_int
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from t1_edge.build import Build, Format
from t1_edge.cli import main
from t1_edge.engines import devices, llama_devices, nvidia, opening, probe, select
from t1_edge.engines.llama import LlamaEngine
from t1_edge.engines.nvidia import Driver
from t1_edge.engines.onnx import PLACES, OnnxEngine
from t1_edge.engines.probe import PROBE_BUILD, Probe
from t1_edge.engines.race import Pace
from t1_edge.errors import DeviceError, EngineError
from t1_edge.golden import check

FORMATS: tuple[Format, ...] = ("onnx", "gguf")


class RecordedDriver:
    """libcuda, as it answers on some machine."""

    def __init__(self, *, version: int, init: int = 0, counting: int = 0, devices: int = 1) -> None:
        self._version, self._init, self._counting = version, init, counting
        self._devices = devices

    def cuDriverGetVersion(self, out: Any) -> int:
        out._obj.value = self._version
        return 0

    def cuInit(self, flags: int) -> int:
        return self._init

    def cuDeviceGetCount(self, out: Any) -> int:
        assert isinstance(out._obj, c_int)
        out._obj.value = self._devices
        return self._counting


def test_a_driver_says_what_it_has() -> None:
    found = nvidia.ask(RecordedDriver(version=12080, devices=2))
    assert found == Driver(missing="", cuda=(12, 8), devices=2)


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (RecordedDriver(version=12080, init=999), "does not start .CUDA error 999."),
        (RecordedDriver(version=13000, init=100), "CUDA_VISIBLE_DEVICES"),
        (RecordedDriver(version=13000, counting=3), "does not start .CUDA error 3."),
    ],
)
def test_a_driver_without_a_gpu_says_why(driver: RecordedDriver, reason: str) -> None:
    assert re.search(reason, nvidia.ask(driver).missing)


def _wheel(folder: Path, name: str) -> None:
    """What pip leaves of a distribution that it has installed."""
    (folder / f"{name.replace('-', '_')}-1.32.0.dist-info").mkdir(parents=True)


def test_both_wheels_of_onnx_runtime_are_refused_even_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_build: Callable[..., Build]
) -> None:
    assert (devices._packages() / "onnxruntime").is_dir()
    monkeypatch.setattr(devices, "_packages", lambda: tmp_path)
    _wheel(tmp_path, "onnxruntime")
    assert devices.obstacle("onnx", "cpu") is None
    _wheel(tmp_path, "onnxruntime-gpu")
    build = tiny_build("llama", "portable")
    for device in ("cpu", "cuda"):
        with pytest.raises(DeviceError, match=r"both installed .* pip uninstall"):
            select.open_engine(build, engine="onnx", device=device)


@pytest.fixture
def cuda_wheel(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes ONNX Runtime look like a wheel for CUDA: cuda_wheel(driver, version, cuda)."""

    def make(driver: tuple[int, int] | None, version: str = "1.32.0", cuda: str = "13.0") -> None:
        import onnxruntime
        from onnxruntime.capi import build_and_package_info

        providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
        monkeypatch.setattr(onnxruntime, "__version__", version)
        monkeypatch.setattr(build_and_package_info, "cuda_version", cuda, raising=False)
        monkeypatch.setattr(devices, "driver_version", lambda: driver)

    return make


GPU = (13, 0)


@pytest.mark.parametrize(
    ("driver", "version", "reason"),
    [
        (None, "1.32.0", "no NVIDIA driver"),
        ((12, 8), "1.32.0", "gives CUDA 12.8 and the .* is for CUDA 13"),
        (GPU, "1.31.1", "needs 1.32"),
    ],
)
def test_cuda_that_cannot_run_says_why(
    tiny_build: Callable[..., Build],
    cuda_wheel: Callable[..., None],
    driver: tuple[int, int] | None,
    version: str,
    reason: str,
) -> None:
    cuda_wheel(driver, version)
    with pytest.raises(DeviceError, match=reason):
        select.open_engine(tiny_build("llama", "portable"), engine="onnx", device="cuda")


def test_nothing_stands_in_the_way_of_a_wheel_that_fits(cuda_wheel: Callable[..., None]) -> None:
    cuda_wheel(GPU)
    assert devices.obstacle("onnx", "cuda") is None
    cuda_wheel(GPU, cuda="")  # a wheel of somebody's own, which does not say
    assert devices.obstacle("onnx", "cuda") is None


@pytest.mark.skipif(not nvidia.nvidia_driver().missing, reason="a GPU is here")
@pytest.mark.skipif(sys.platform == "darwin", reason="Metal is here")
def test_the_wheels_here_are_for_the_cpu(tiny_build: Callable[..., Build]) -> None:
    build = tiny_build("llama", "portable")
    with pytest.raises(DeviceError, match=r"onnx: .* without CUDA.*; gguf: .*") as found:
        select.open_engine(build, device="cuda")
    assert "pip install" in str(found.value)
    with pytest.raises(DeviceError, match=r"no Metal.*; gguf: "):
        select.open_engine(build, device="metal")


def test_a_build_without_a_graph_for_cuda_says_so(
    tiny_build: Callable[..., Build], cuda_wheel: Callable[..., None]
) -> None:
    cuda_wheel(GPU)
    with pytest.raises(DeviceError, match="no graph for CUDA: export it again with --cuda"):
        select.open_engine(tiny_build("llama", "float"), engine="onnx", device="cuda")


def test_llama_without_a_gpu_says_how_to_compile_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "driver_version", lambda: GPU)
    monkeypatch.setattr(devices, "devices_of", lambda device: [])
    assert "-DGGML_CUDA=on" in (devices.obstacle("gguf", "cuda") or "")


def test_llama_uses_no_device_but_those_that_were_asked_for() -> None:
    found = llama_devices.llama_devices()
    assert [device for device in found if device.backend == "CPU"]
    assert list(llama_devices.device_array("cpu")) == [None]


def test_nodes_that_run_elsewhere_are_an_error(tiny_build: Callable[..., Build]) -> None:
    """ONNX Runtime warns, and gives the whole graph to the CPU."""
    build = tiny_build("llama", "portable")
    with (
        warnings.catch_warnings(action="ignore"),  # of a wheel that does not know the provider
        pytest.raises(DeviceError, match=r"run \d+ nodes of .* outside of cuda, .* embedded"),
    ):
        OnnxEngine(build.path, build.manifest.decoder, threads=1, place=PLACES["cuda"])


def test_the_cuda_engine_gives_a_builds_golden_vectors(tiny_build: Callable[..., Build]) -> None:
    build = tiny_build("qwen3", "portable")
    place = replace(PLACES["cuda"], provider="CPUExecutionProvider", memory="cpu")
    engine = OnnxEngine(build.path, build.manifest.decoder, threads=1, place=place)
    assert engine.info.device == "cuda"
    check(build, engine)


@pytest.mark.parametrize("format", FORMATS)
def test_the_tiny_build_runs_here(format: Format, own_cache: Path) -> None:
    Build(PROBE_BUILD).check_hashes()
    found = probe.probe(format, "cpu")
    assert found.ran, found.reason
    assert found.library
    assert probe.ran_before(format, "cpu").ran
    assert list((own_cache / "probed").iterdir())


def test_a_probe_that_dies_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_MODULE", "json.nothing")
    found = probe.probe("onnx", "cpu")
    assert not found.ran
    assert "ended with code 1" in found.reason
    assert "json" in found.reason


def test_a_probe_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_SECONDS", 0.01)
    assert "timed out" in probe.probe("gguf", "cpu").reason


def test_auto_takes_what_ran_first(
    tiny_build: Callable[..., Build],
    monkeypatch: pytest.MonkeyPatch,
    own_cache: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    build = tiny_build("llama", "portable")
    monkeypatch.setattr(select, "obstacle", lambda format, device: None)
    ran: set[tuple[str, str]] = {("gguf", "metal"), ("onnx", "cuda"), ("gguf", "cuda")}

    def ran_before(format: Format, device: devices.DeviceName) -> Probe:
        known = (format, device) in ran
        return Probe(format=format, device=device, ran=known, reason="" if known else "broken")

    monkeypatch.setattr(select, "ran_before", ran_before)
    paces = {"onnx": Pace(reading=2.0, step=0.0), "gguf": Pace(reading=1.0, step=0.0)}
    monkeypatch.setattr(select, "race", lambda *_, **__: paces)
    assert select.choose(build).device == "cuda"
    assert select.choose(build).format == "gguf"
    ran -= {("onnx", "cuda"), ("gguf", "cuda")}
    found = select.choose(build)
    assert (found.format, found.device) == ("gguf", "metal")
    assert "no other runs on metal" in found.reason
    ran.clear()
    with caplog.at_level("WARNING"):
        found = select.choose(build)
    assert found.device == "cpu"
    for said in (found.reason, caplog.text):
        assert "not onnx on cuda: broken" in said


def test_a_library_that_is_no_longer_there_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(opening, "import_module", broken)
    with pytest.raises(EngineError, match=r"cannot be loaded: libgomp.*install it again"):
        opening.library_of("gguf")


def test_onnx_runtime_tells_nobody_of_its_use(
    tiny_build: Callable[..., Build], tmp_path: Path
) -> None:
    code = "import sys, t1_edge; t1_edge.Encoder.load(sys.argv[1], engine='onnx', threads=1)"
    build = str(tiny_build("llama", "float").path)
    places = {"HOME": tmp_path, "TMPDIR": tmp_path, "T1_EDGE_CACHE": tmp_path / "cache"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORT_")}
    env = kept | {name: str(path) for name, path in places.items()}
    env.pop("XDG_CACHE_HOME", None)
    subprocess.run([sys.executable, "-B", "-c", code, build], env=env, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_the_llama_engine_says_where_it_ran(tiny_build: Callable[..., Build]) -> None:
    build = tiny_build("llama", "portable")
    engine = LlamaEngine(build.file("model.gguf"), build.manifest.decoder, threads=1)
    assert engine.info.device == "cpu"
    engine.close()


@pytest.fixture
def kept(tiny_build: Callable[..., Build], own_cache: Path) -> Path:
    """A build in the cache."""
    path = own_cache / "builds" / "kept"
    shutil.copytree(tiny_build("llama", "portable").path, path)
    return path


def test_doctor_says_what_runs(kept: Path) -> None:
    found = CliRunner().invoke(main, ["doctor", "kept", "--json"])
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    probes = msgspec.convert(report["probes"], list[Probe])
    assert {(one.format, one.device) for one in probes if one.ran} >= {(f, "cpu") for f in FORMATS}
    assert all(one.reason for one in probes if not one.ran)
    assert report["chosen"]["device"] in ("cpu", "cuda", "metal")
    assert report["chosen"]["format"] in FORMATS
    assert [build["problem"] for build in report["builds"]] == [""]
    assert report["cache_obstacle"] == ""
    plain = CliRunner().invoke(main, ["doctor", "kept", "--budget", "3"])
    assert "onnx cpu   runs" in plain.stdout
    assert "with a budget of 3: onnx " in plain.stdout
    assert "every hash is right" in plain.stdout


def test_doctor_says_that_the_cache_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv("T1_EDGE_CACHE", str(tmp_path / "file" / "cache"))
    found = CliRunner().invoke(main, ["doctor"])
    assert f"{tmp_path / 'file' / 'cache'}: cannot be written" in found.stdout
    assert "Not a directory" in found.stdout


def test_doctor_fails_where_the_build_that_was_named_does_not_run(kept: Path) -> None:
    command = CliRunner()
    assert command.invoke(main, ["doctor", "kept"]).exit_code == 0
    assert command.invoke(main, ["doctor"]).exit_code == 0  # nano was not pulled, nor asked for
    found = command.invoke(main, ["doctor", "nothing-here"])
    assert found.exit_code == 1
    assert "auto       nothing for nothing-here" in found.stdout


def test_doctor_finds_damage(kept: Path) -> None:
    weights = kept / "weights.bin"
    raw = bytearray(weights.read_bytes())
    raw[100] ^= 1
    weights.write_bytes(raw)
    found = CliRunner().invoke(main, ["doctor", "nothing-here"])
    assert found.exit_code == 1
    assert "weights.bin is damaged" in found.stdout
    assert "auto       nothing for nothing-here" in found.stdout
