"""WebGPU: rows one at a time, in short chunks, by a plugin that has to be there."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from t1_edge.build import Build
from t1_edge.engines import devices, onnx, select, webgpu_plugin
from t1_edge.engines.onnx import OnnxSession
from t1_edge.engines.places import PLACES
from t1_edge.engines.webgpu import WebGpuEngine
from t1_edge.engines.webgpu_plugin import plugin_devices
from t1_edge.errors import DeviceError, EngineError

ON_CPU = replace(PLACES["webgpu"], provider="CPUExecutionProvider", memory="cpu")


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes a plugin importable that ONNX Runtime answers so: plugin(*devices, fails=False)."""
    import onnxruntime

    def make(*providers: str, fails: bool = False) -> None:
        def register(name: str, path: str) -> None:
            assert path == "libsome.so"
            if fails:
                raise RuntimeError("libvulkan.so.1: cannot open shared object file")

        found = [SimpleNamespace(ep_name=name) for name in ("CPUExecutionProvider", *providers)]
        monkeypatch.setattr(onnxruntime, "register_execution_provider_library", register)
        monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: found)

    (tmp_path / "recorded_webgpu.py").write_text("def get_library_path(): return 'libsome.so'")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(webgpu_plugin, "_MODULE", "recorded_webgpu")
    plugin_devices.cache_clear()
    yield make
    plugin_devices.cache_clear()


def test_the_plugin_s_device_is_found(plugin: Callable[..., None]) -> None:
    plugin("WebGpuExecutionProvider", "OtherExecutionProvider")
    assert devices.obstacle("onnx", "webgpu") is None
    [found] = plugin_devices()
    assert found.ep_name == "WebGpuExecutionProvider"


def test_a_plugin_that_cannot_run_says_why(
    plugin: Callable[..., None], tiny_build: Callable[..., Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    def refused(reason: str) -> None:
        with pytest.raises(DeviceError, match=f"onnx: .*{reason}"):
            select.open_engine(tiny_build("llama", "portable"), engine="onnx", device="webgpu")

    plugin("OtherExecutionProvider")
    refused("onnxruntime-ep-webgpu finds no GPU")
    plugin_devices.cache_clear()
    plugin(fails=True)
    refused("cannot be loaded: libvulkan.so.1")
    monkeypatch.setattr(onnxruntime, "__version__", "1.31.1")
    refused("needs 1.32")
    monkeypatch.undo()
    monkeypatch.setattr(webgpu_plugin, "_MODULE", "nothing_like_it")
    refused("is not installed: pip install 't1-edge.webgpu.'")


def test_a_device_of_a_plugin_is_what_a_session_is_made_for(
    tiny_build: Callable[..., Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU's own device stands in for the plugin's; what is asked for is given it alone."""
    import onnxruntime

    [processor] = [
        one for one in onnxruntime.get_ep_devices() if one.ep_name == "CPUExecutionProvider"
    ]
    monkeypatch.setattr(onnx, "plugin_devices", lambda: [processor, processor])
    graph = tiny_build("llama", "portable").path / "model.onnx"
    session = onnx._open(graph, 1, replace(ON_CPU, memory="webgpu"))
    assert session.get_providers() == ["CPUExecutionProvider"]
    with pytest.raises(DeviceError, match="outside of webgpu, and 0 there"):
        onnx._open(graph, 1, PLACES["webgpu"])


@pytest.fixture
def engine(tiny_build: Callable[..., Build]) -> Iterator[WebGpuEngine]:
    build = tiny_build("llama", "portable")
    engine = WebGpuEngine(build.path, build.manifest.decoder, threads=1, place=ON_CPU)
    yield engine
    engine.close()


def test_no_run_has_several_rows_padding_or_a_long_chunk(
    engine: WebGpuEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    run = OnnxSession._run

    def watched(self: OnnxSession, chunks: list[list[int]], *rest: Any) -> Any:
        [chunk] = chunks
        ran.append(len(chunk))
        return run(self, chunks, *rest)

    monkeypatch.setattr(OnnxSession, "_run", watched)
    rows = [[*range(5, 105)], [7] * 31, [9], [*range(3, 35)]]
    with engine.start(rows, room=60) as session:
        session.peek(*[2] * 15)
        for token in range(40):
            session.append({0: token, 2: token})
        session.logits()
        session.peek(*[3] * 15)
    assert max(ran) == 31
    assert sum(ran) >= sum(map(len, rows)) + 80


def test_what_closes_a_thought_must_fit_a_chunk(engine: WebGpuEngine) -> None:
    with (
        engine.start([[1, 2, 3]], room=20) as session,
        pytest.raises(EngineError, match="16 tokens close a thought; WebGPU is driven with 15"),
    ):
        session.peek(*[2] * 16)


def test_chunks_change_next_to_nothing(
    engine: WebGpuEngine, tiny_build: Callable[..., Build]
) -> None:
    build = tiny_build("llama", "portable")
    whole = onnx.OnnxEngine(build.path, build.manifest.decoder, threads=1)
    row = [*range(5, 105)]
    with engine.start([row], room=1) as ours, whole.start([row], room=1) as theirs:
        found, expected = ours.peek(7)[0], theirs.peek(7)[0]
    cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine > 0.999
