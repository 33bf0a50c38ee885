"""AMX kernels of llama.cpp that end the process where they were compiled wrong."""

import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import llama_cpp
import pytest

from t1_edge.build import GGUF_MODEL, Build
from t1_edge.engines import llama_amx
from t1_edge.engines.llama import LlamaEngine
from t1_edge.engines.probe import PROBE_BUILD
from t1_edge.golden import check


def _open(amx: bool | None = None) -> LlamaEngine:
    build = Build(PROBE_BUILD)
    model, decoder = build.path / GGUF_MODEL, build.manifest.decoder
    return LlamaEngine(model, decoder, threads=1, amx=amx)


def test_a_build_runs_without_amx() -> None:
    with closing(_open(amx=False)) as engine:
        check(Build(PROBE_BUILD), engine)
        assert "AMX off" in engine.info.library


def test_what_does_not_run_is_found_out_in_another_process(own_cache: Path) -> None:
    with closing(_open()) as engine:
        check(Build(PROBE_BUILD), engine)
        works = not llama_amx.has_amx(llama_cpp) or llama_amx.amx_runs(llama_cpp)
        assert ("AMX off" in engine.info.library) == (not works)


@pytest.mark.parametrize(("says", "has"), [(b"AVX2 = 1 | AMX_INT8 = 1 | ", True), (b"", False)])
def test_llama_cpp_says_whether_it_has_amx(says: bytes, has: bool) -> None:
    assert llama_amx.has_amx(SimpleNamespace(llama_print_system_info=lambda: says)) == has


@pytest.mark.parametrize(("module", "runs"), [("this", True), ("json.nothing", False)])
def test_a_process_that_dies_leaves_them_off(
    module: str,
    runs: bool,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(llama_amx, "_MODULE", module)
    assert llama_amx.amx_runs(llama_cpp) is runs
    assert ("stay off" in caplog.text) is not runs
    monkeypatch.setattr(llama_amx, "_MODULE", "nothing.at.all")
    assert llama_amx.amx_runs(llama_cpp) is runs, "it is asked once for a library and machine"


def test_a_frozen_app_leaves_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert not llama_amx.amx_runs(llama_cpp)
