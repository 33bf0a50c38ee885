"""llama.cpp's devices: ggml's registry on other machines, and what a model is given of them."""

import ctypes
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from t1_edge.build import Build
from t1_edge.engines import devices, llama_devices
from t1_edge.engines.devices import DeviceName
from t1_edge.engines.llama import LlamaEngine
from t1_edge.engines.llama_devices import LlamaDevice
from t1_edge.engines.nvidia import Driver
from t1_edge.errors import EngineError

EPYC, L4, H100, M3 = "AMD EPYC 9R14", "NVIDIA L4", "NVIDIA H100 80GB HBM3", "Apple M3"
_DEVICE = 0x1000


class RecordedRegistry:
    """The library of ggml, as it answers on some machine.

    Args:
        backends: Descriptions of each one's devices, by name; a handle is a number.
    """

    def __init__(self, backends: Mapping[str, Sequence[str]]) -> None:
        self._backends = [*backends]
        self._devices = [
            (at, f"{name}{number}", description)
            for at, (name, found) in enumerate(backends.items())
            for number, description in enumerate(found)
        ]

    def ggml_backend_reg_count(self) -> int:
        return len(self._backends)

    def ggml_backend_reg_get(self, at: int) -> int:
        return at + 1

    def ggml_backend_reg_name(self, registered: int) -> bytes:
        return self._backends[registered - 1].encode()

    def ggml_backend_dev_count(self) -> int:
        return len(self._devices)

    def ggml_backend_dev_get(self, at: int) -> int:
        return _DEVICE + at

    def ggml_backend_dev_backend_reg(self, device: int) -> int:
        return self._devices[device - _DEVICE][0] + 1

    def ggml_backend_dev_name(self, device: int) -> bytes:
        return self._devices[device - _DEVICE][1].encode()

    def ggml_backend_dev_description(self, device: int) -> bytes:
        return self._devices[device - _DEVICE][2].encode()


Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes llama.cpp answer as on some machine: machine(CUDA=[L4], CPU=[EPYC])."""

    def make(driver: Driver | None = None, **backends: Sequence[str]) -> None:
        monkeypatch.setattr(llama_devices, "_registry", lambda: RecordedRegistry(backends))
        monkeypatch.setattr(devices, "driver_version", lambda: driver and driver.cuda)
        monkeypatch.setattr(devices, "nvidia_driver", lambda: driver)
        monkeypatch.setattr(sys, "platform", "darwin" if "MTL" in backends else "linux")

    return make


HIDDEN = Driver(missing="has no GPU to give: is CUDA_VISIBLE_DEVICES empty?", cuda=(12, 4))
OLD = Driver(missing="", cuda=(12, 4), gpus=(L4,))


def test_the_registry_is_read(machine: Machine) -> None:
    machine(CUDA=[L4, H100], BLAS=[], CPU=[EPYC])
    assert llama_devices.backends() == ["CUDA", "BLAS", "CPU"]
    assert llama_devices.devices_of("cuda") == [
        LlamaDevice(handle=_DEVICE, backend="CUDA", name="CUDA0", description=L4),
        LlamaDevice(handle=_DEVICE + 1, backend="CUDA", name="CUDA1", description=H100),
    ]
    assert llama_devices.devices_of("metal") == llama_devices.devices_of("cpu") == []


@pytest.mark.parametrize(
    ("driver", "backends", "device", "reason"),
    [
        (HIDDEN, {"CUDA": [], "CPU": [EPYC]}, "cuda", "is CUDA_VISIBLE_DEVICES empty"),
        (
            OLD,
            {"CUDA": [], "CPU": [EPYC]},
            "cuda",
            "was compiled with CUDA and finds none of the driver's GPUs (NVIDIA L4): if for a "
            "newer CUDA than 12.4",
        ),
        (OLD, {"CPU": [EPYC]}, "cuda", "was compiled without CUDA: compile it again"),
        (None, {"CUDA": [], "CPU": [EPYC]}, "cuda", "there is no NVIDIA driver"),
        (None, {"MTL": [], "CPU": [M3]}, "metal", "was compiled with Metal, and finds no GPU"),
        (None, {"WebGPU": [], "CPU": [EPYC]}, "webgpu", "compiled with WebGPU, and finds no GPU"),
        (None, {"CPU": [EPYC]}, "webgpu", "without WebGPU: .*-DGGML_WEBGPU=on"),
    ],
)
def test_a_backend_without_a_device_is_not_one_that_is_not_there(
    machine: Machine,
    driver: Driver | None,
    backends: dict[str, list[str]],
    device: DeviceName,
    reason: str,
) -> None:
    machine(driver, **backends)
    found = devices.obstacle("gguf", device) or ""
    first, _, rest = reason.partition(".*")
    assert first in found
    assert rest in found
    assert ("compiled without" in found) == ("without" in reason)


GIVEN = [
    ("cuda", {"CUDA": [L4, H100], "CPU": [EPYC]}, -1, [_DEVICE, _DEVICE + 1]),
    ("metal", {"BLAS": ["Accelerate"], "MTL": [M3], "CPU": [M3]}, -1, [_DEVICE + 1]),
    ("webgpu", {"WebGPU": ["WebGPU"], "CPU": [EPYC]}, -1, [_DEVICE]),
    ("cpu", {"CUDA": [L4], "CPU": [EPYC]}, 0, []),
]


@pytest.mark.parametrize(("device", "backends", "layers", "handles"), GIVEN)
def test_a_gpu_gets_every_layer_and_the_processor_no_gpu(
    machine: Machine,
    tiny_build: Callable[..., Build],
    monkeypatch: pytest.MonkeyPatch,
    device: DeviceName,
    backends: dict[str, list[str]],
    layers: int,
    handles: list[int],
) -> None:
    import llama_cpp

    build = tiny_build("llama", "portable")
    machine(OLD, **backends)
    asked: list[tuple[bytes, int, list[int]]] = []

    def load(model: bytes, parameters: Any) -> None:
        given = ctypes.cast(parameters.devices, ctypes.POINTER(ctypes.c_void_p))
        found: list[int] = []
        while given[len(found)] is not None:
            found.append(given[len(found)])
        asked.append((model, parameters.n_gpu_layers, found))

    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", load)
    assert devices.obstacle("gguf", device) is None
    model = build.file("model.gguf")
    with pytest.raises(EngineError, match=r"llama\.cpp cannot open"):
        LlamaEngine(model, build.manifest.decoder, threads=1, device=device, pack=False)
    assert asked == [(str(model).encode(), layers, handles)]
