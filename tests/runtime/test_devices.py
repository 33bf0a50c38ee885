"""Devices: what stands in their way, what ran, what is taken, and that nothing falls back."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from t1_edge.build import Build, Format
from t1_edge.engines import devices, llama_devices, nvidia, opening, probe, select
from t1_edge.engines.llama import LlamaEngine
from t1_edge.engines.onnx import OnnxEngine
from t1_edge.engines.places import PLACES
from t1_edge.engines.probe import PROBE_BUILD, Probe
from t1_edge.engines.race import Pace
from t1_edge.errors import DeviceError, EngineError
from t1_edge.golden import check

FORMATS: tuple[Format, ...] = ("onnx", "gguf")


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


def test_a_wheel_without_cuda_says_which_one_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "driver_version", lambda: GPU)
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("the wheel here is for CUDA")
    found = devices.obstacle("onnx", "cuda") or ""
    assert "a wheel without CUDA: in an environment of its own, pip install" in found
    assert "onnxruntime-gpu 1.32" in found


def test_nothing_stands_in_the_way_of_a_wheel_that_fits(cuda_wheel: Callable[..., None]) -> None:
    cuda_wheel(GPU)
    assert devices.obstacle("onnx", "cuda") is None
    cuda_wheel(GPU, cuda="")  # a wheel of somebody's own, which does not say
    assert devices.obstacle("onnx", "cuda") is None


@pytest.mark.skipif(not nvidia.nvidia_driver().missing, reason="a GPU is here")
@pytest.mark.skipif(sys.platform == "darwin", reason="Metal is here")
def test_the_wheels_here_are_for_the_cpu(tiny_build: Callable[..., Build]) -> None:
    build = tiny_build("llama", "portable")
    with pytest.raises(DeviceError, match=r"onnx: (.* driver|.* without CUDA).*; gguf: "):
        select.open_engine(build, device="cuda")
    with pytest.raises(DeviceError, match=r"no Metal.*; gguf: "):
        select.open_engine(build, device="metal")


def test_a_build_without_a_graph_for_cuda_says_so(
    tiny_build: Callable[..., Build], cuda_wheel: Callable[..., None]
) -> None:
    build = tiny_build("llama", "float")
    cuda_wheel(GPU)
    with pytest.raises(DeviceError, match="onnx: the build has no graph for CUDA: export it again"):
        select.open_engine(build, engine="onnx", device="cuda")
    cuda_wheel(None)
    with pytest.raises(DeviceError, match=r"no NVIDIA driver.*; and the build has no graph"):
        select.open_engine(build, engine="onnx", device="cuda")


def test_llama_without_a_gpu_says_how_to_compile_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "driver_version", lambda: GPU)
    monkeypatch.setattr(devices, "devices_of", lambda device: [])
    assert "-DGGML_CUDA=on" in (devices.obstacle("gguf", "cuda") or "")


def test_llama_uses_no_device_but_those_that_were_asked_for() -> None:
    found = llama_devices.llama_devices()
    [processor] = [device for device in found if device.backend == "CPU"]
    assert processor.name == "CPU"
    assert processor.description
    assert "CPU" in llama_devices.backends()
    assert list(llama_devices.device_array("cpu")) == [None]


class RecordedAssignment:
    """A session of ONNX Runtime, as it answers on some machine: what went where."""

    def __init__(self, **nodes: Sequence[tuple[str, str]]) -> None:
        self._nodes = nodes

    def get_provider_graph_assignment_info(self) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(
                ep_name=name,
                get_nodes=lambda given=given: [
                    SimpleNamespace(name=node, op_type=kind) for node, kind in given
                ],
            )
            for name, given in self._nodes.items()
        ]


EMBEDDED, ATTENTION = ("embedded", "GatherBlockQuantized"), ("attention.0", "GroupQueryAttention")


@pytest.mark.parametrize(
    ("assigned", "reason"),
    [
        (
            {"CUDAExecutionProvider": [EMBEDDED], "CPUExecutionProvider": [ATTENTION]},
            r"run 1 nodes of .* outside of cuda, and 1 there, the first is attention\.0 "
            r"\(GroupQueryAttention\): CUDAExecutionProvider has no kernels for them",
        ),
        (
            {"CPUExecutionProvider": [EMBEDDED, ATTENTION]},
            r"run 2 nodes of .* and 0 there, .* CUDAExecutionProvider was not started",
        ),
    ],
)
def test_nodes_that_fall_back_are_an_error_be_it_some_or_all(
    tiny_build: Callable[..., Build],
    cuda_wheel: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    assigned: dict[str, list[tuple[str, str]]],
    reason: str,
) -> None:
    import onnxruntime

    build = tiny_build("llama", "portable")
    cuda_wheel(GPU)
    made: list[dict[str, Any]] = []

    def session(*_: object, **options: Any) -> RecordedAssignment:
        made.append(options)
        return RecordedAssignment(**assigned)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(DeviceError, match=reason):
        OnnxEngine(build.path, build.manifest.decoder, threads=1, place=PLACES["cuda"])
    assert made == [{"providers": ["CUDAExecutionProvider"], "enable_fallback": 0}]
    assigned = {"CUDAExecutionProvider": [EMBEDDED, ATTENTION]}
    engine = OnnxEngine(build.path, build.manifest.decoder, threads=1, place=PLACES["cuda"])
    assert engine.info.device == "cuda"


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


def test_what_was_probed_just_now_counts_for_more_than_what_was_kept(
    tiny_build: Callable[..., Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = tiny_build("llama", "portable")
    monkeypatch.setattr(select, "obstacle", lambda format, device: None)
    monkeypatch.setattr(
        select, "ran_before", lambda format, device: Probe(format=format, device=device, ran=True)
    )

    def gone(format: Format, device: devices.DeviceName) -> Probe:
        return Probe(format=format, device=device, ran=False, reason="the GPU is gone")

    fresh = [gone(format, device) for format in FORMATS for device in ("cuda", "metal")]
    found = select.choose(build, probes=[*fresh, gone("gguf", "cpu")])
    assert (found.format, found.device) == ("onnx", "cpu")
    assert "not onnx on cuda: the GPU is gone" in found.reason
    assert "not gguf on cpu: the GPU is gone" in found.reason
    with pytest.raises(DeviceError, match=r"onnx: the GPU is gone; gguf: the GPU is gone"):
        select.choose(build, probes=[*fresh, *(gone(format, "cpu") for format in FORMATS)])


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
