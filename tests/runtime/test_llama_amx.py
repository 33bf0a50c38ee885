"""AMX kernels of llama.cpp that end the process where they were compiled wrong."""

import signal
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from t1_edge.build import GGUF_MODEL, Build
from t1_edge.engines import llama_amx, llama_context
from t1_edge.engines.llama import LlamaEngine
from t1_edge.engines.probe import PROBE_BUILD
from t1_edge.golden import check

WITH_AMX = SimpleNamespace(
    __version__="0.3.36", llama_print_system_info=lambda: b"AVX2 = 1 | AMX_INT8 = 1 | "
)
WITHOUT = SimpleNamespace(llama_print_system_info=lambda: b"AVX2 = 1 | REPACK = 1 | ")


@pytest.mark.parametrize("packs", [True, False])
def test_a_build_runs_either_way_and_says_which(
    packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_context, "may_pack", lambda api: packs and llama_amx.may_pack(api))
    build = Build(PROBE_BUILD)
    model = build.path / GGUF_MODEL
    with closing(LlamaEngine(model, build.manifest.decoder, threads=2)) as engine:
        check(build, engine)
        if not packs:
            assert "weights not packed" in engine.info.library


def test_weights_are_packed_where_there_are_no_such_kernels(
    own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert llama_amx.may_pack(WITHOUT)
    assert not own_cache.exists()
    assert not caplog.text


def test_the_trial_is_made_once(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine's come to: without AMX the trial packs, and runs."""
    first = llama_amx.may_pack(WITH_AMX)
    [kept] = (own_cache / "amx").iterdir()
    monkeypatch.setattr(llama_amx, "_MODULE", "nothing.at.all")
    assert llama_amx.may_pack(WITH_AMX) is first
    kept.unlink()
    assert not llama_amx.may_pack(WITH_AMX)


def _kill_itself(folder: Path, how: int) -> str:
    """A module whose process ends by a signal, as one does that meets an illegal instruction."""
    (folder / "dying.py").write_text(f"import os; os.kill(os.getpid(), {how})")
    return "dying"


@pytest.mark.parametrize(
    ("ends_by", "kept"),
    [(signal.SIGILL, True), (signal.SIGSEGV, True), (signal.SIGKILL, False)],
)
def test_a_crash_is_kept_and_told_of_each_time(
    ends_by: signal.Signals,
    kept: bool,
    tmp_path: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(llama_amx, "_MODULE", _kill_itself(tmp_path, ends_by))
    for time in (1, 2):
        assert not llama_amx.may_pack(WITH_AMX)
        assert caplog.text.count(f"what tried them here ended with {ends_by.name}") == time
    assert (own_cache / "amx").exists() is kept


def test_what_could_not_be_tried_is_tried_again(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(llama_amx, "_SECONDS", 0.01)
    assert not llama_amx.may_pack(WITH_AMX)
    assert "no process could try it" in caplog.text
    assert not (own_cache / "amx").exists()


def test_a_frozen_app_leaves_them_off(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sys.frozen", True, raising=False)
    assert not llama_amx.may_pack(WITH_AMX)
    assert "a frozen app" in caplog.text
