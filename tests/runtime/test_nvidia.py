"""NVIDIA's driver, as it answers on other machines, and what is kept of a GPU that ran."""

import re
from collections.abc import Sequence
from ctypes import c_int, c_void_p
from pathlib import Path
from typing import Any

import msgspec
import pytest

from t1_edge.build import Format
from t1_edge.engines import nvidia, probe
from t1_edge.engines.devices import DeviceName
from t1_edge.engines.nvidia import Driver
from t1_edge.engines.probe import Probe


class RecordedManagement:
    """libnvidia-ml, as it answers on some machine."""

    def __init__(self, *gpus: tuple[str, str], init: int = 0) -> None:
        self._gpus, self._init = gpus, init

    def nvmlInit_v2(self) -> int:
        return self._init

    def nvmlShutdown(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, out: Any) -> int:
        out._obj.value = len(self._gpus)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, at: int, out: Any) -> int:
        out._obj.value = at + 1
        return 0 if self._gpus[at][0] else 6  # NVML_ERROR_NOT_FOUND

    def nvmlDeviceGetName(self, device: c_void_p, out: Any, length: int) -> int:
        out.value = self._gpus[(device.value or 0) - 1][0].encode()
        return 0

    def nvmlDeviceGetUUID(self, device: c_void_p, out: Any, length: int) -> int:
        out.value = self._gpus[(device.value or 0) - 1][1].encode()
        return 0


class RecordedDriver:
    """libcuda, as it answers on some machine."""

    def __init__(
        self, *, version: int, init: int = 0, counting: int = 0, names: Sequence[str] = ()
    ) -> None:
        self._version, self._init, self._counting = version, init, counting
        self._names = names

    def cuDriverGetVersion(self, out: Any) -> int:
        out._obj.value = self._version
        return 0

    def cuInit(self, flags: int) -> int:
        return self._init

    def cuDeviceGetCount(self, out: Any) -> int:
        assert isinstance(out._obj, c_int)
        out._obj.value = len(self._names)
        return self._counting

    def cuDeviceGet(self, out: Any, at: int) -> int:
        out._obj.value = at
        return 0

    def cuDeviceGetName(self, out: Any, length: int, device: c_int) -> int:
        out.value = self._names[device.value].encode()
        return 0


def test_a_driver_says_what_it_has() -> None:
    names = ("NVIDIA L4", "NVIDIA H100 80GB HBM3")
    found = nvidia.ask(RecordedDriver(version=12080, names=names))
    assert found == Driver(missing="", cuda=(12, 8), gpus=names)


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


L4, H100 = ("NVIDIA L4", "GPU-1"), ("NVIDIA H100 80GB HBM3", "GPU-2")


def test_gpus_are_told_apart_without_starting_the_driver() -> None:
    assert nvidia.listed_gpus(RecordedManagement(L4, ("", ""), H100)) == [
        "NVIDIA L4 GPU-1",
        "not ours",
        "NVIDIA H100 80GB HBM3 GPU-2",
    ]
    assert nvidia.listed_gpus(RecordedManagement(L4, init=9)) == []  # NVML_ERROR_DRIVER_NOT_LOADED


def test_a_kept_probe_is_of_the_gpus_that_were_in_sight(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    runs: list[str] = []

    def ran(format: Format, device: DeviceName) -> Probe:
        runs.append(format)
        return Probe(format=format, device=device, ran=True)

    monkeypatch.setattr(probe, "probe", ran)
    monkeypatch.setattr(probe, "driver_version", lambda: (13, 0))
    for library in (RecordedManagement(L4), RecordedManagement(L4, H100), None):
        monkeypatch.setattr(nvidia, "_load", lambda *_, library=library: library)
        for visible in (None, "", "1"):
            if visible is not None:
                monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
            else:
                monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
            before = len(runs)
            assert probe.ran_before("onnx", "cuda").ran
            assert probe.ran_before("onnx", "cuda").ran
            assert len(runs) == before + 1


def test_a_probe_that_failed_since_is_what_counts(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    ran = Probe(format="onnx", device="cuda", ran=True)
    gone = msgspec.structs.replace(ran, ran=False, reason="the GPU is gone")
    monkeypatch.setattr(probe, "probe", lambda *_: gone)
    probe.keep(ran)
    assert probe.ran_before("onnx", "cuda") == ran
    probe.keep(gone)
    assert probe.ran_before("onnx", "cuda") == gone
    assert not list((own_cache / "probed").iterdir())
