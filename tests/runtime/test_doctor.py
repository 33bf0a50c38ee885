"""`t1-edge doctor`: a report that does not contradict itself, and what it fails at."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import msgspec
import onnxruntime
import pytest
from click.testing import CliRunner

from t1_edge import doctor
from t1_edge.build import Build, Format
from t1_edge.cli import main
from t1_edge.engines import installed, probe, select
from t1_edge.engines.devices import DeviceName
from t1_edge.engines.installed import Installed
from t1_edge.engines.probe import Probe
from t1_edge.engines.race import Pace

FORMATS: tuple[Format, ...] = ("onnx", "gguf")


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
    onnx, gguf = msgspec.convert(report["engines"], list[Installed])
    assert (onnx.format, gguf.format) == FORMATS
    assert f"{onnxruntime.__version__}" in onnx.packages[0]
    assert onnx.packages[0].startswith("onnxruntime")
    assert gguf.packages == [f"llama-cpp-python {llama_cpp.__version__}"]
    assert "CPUExecutionProvider" in onnx.backends
    assert "CPU" in gguf.backends
    assert [device for device in gguf.devices if device.startswith("CPU: ")]
    plain = CliRunner().invoke(main, ["doctor", "kept", "--budget", "3"])
    assert "onnx cpu   runs" in plain.stdout
    assert "onnx webgpu no" in plain.stdout or "onnx webgpu runs" in plain.stdout
    [line] = [line for line in plain.stdout.splitlines() if line.startswith("gguf       ")]
    assert line.startswith(f"gguf       {gguf.packages[0]}: compiled for ")
    assert "; finds " in line
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


def test_doctor_takes_what_it_has_just_seen_run(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def now(format: Format, device: DeviceName) -> Probe:
        ran = device == "cpu"
        reason = "" if ran else "the GPU is gone"
        return Probe(format=format, device=device, ran=ran, library="some", reason=reason)

    for format in FORMATS:
        probe.keep(Probe(format=format, device="cuda", ran=True))
    paces = {format: Pace(reading=1.0, step=0.0) for format in FORMATS}
    monkeypatch.setattr(select, "race", lambda *_, **__: paces)
    monkeypatch.setattr(select, "obstacle", lambda format, device: None)
    monkeypatch.setattr(Build, "has_cuda_graph", True)
    assert select.choose(Build(kept)).device == "cuda"
    monkeypatch.setattr(doctor, "probe", now)
    found = doctor.examine("kept")
    assert found.chosen.device == "cpu"
    assert "not gguf on cuda: the GPU is gone" in found.chosen.reason
    monkeypatch.setattr(probe, "probe", now)
    assert select.choose(Build(kept)).device == "cpu"


def test_doctor_names_both_wheels_and_loads_no_library_that_does_not_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = {"onnxruntime": ["onnxruntime-gpu", "onnxruntime", "onnxruntime"]}
    monkeypatch.setattr(installed, "packages_distributions", lambda: both)
    monkeypatch.setattr(
        installed, "version", {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}.__getitem__
    )
    monkeypatch.setattr(installed, "load_library", None)
    assert installed.installed("onnx", loads=False) == Installed(
        format="onnx",
        packages=["onnxruntime 1.32.0", "onnxruntime-gpu 1.31.1"],
        backends=[],
        devices=[],
    )
    assert installed.installed("gguf", loads=False).packages == []
