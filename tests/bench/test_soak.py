"""Mixed work at a tiny build: a minute of what `t1-edge bench soak` does in an hour."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from t1_edge.build import Build
from t1_edge.cli import main
from t1_edge.machine import open_files, resident_bytes
from t1_edge_bench.soak import tenths

CALLERS = 4
KINDS = {
    "cancelled stream",
    "deadline",
    "documents",
    "given thought",
    "queries",
    "query again",
    "refused",
    "settled",
}


@pytest.fixture
def soak(tiny_build: Callable[..., Build]) -> Callable[..., Any]:
    build = str(tiny_build("llama", "portable").path)
    arguments = ["bench", "soak", "--build", build, "--threads", "1"]
    return lambda *more: CliRunner().invoke(main, [*arguments, *more])


def test_both_engines_work_for_a_while(soak: Callable[..., Any], tmp_path: Path) -> None:
    """The bound is wide: of a tiny build the heap's holes are most, and it is warm for seconds."""
    kept = tmp_path / "samples.jsonl"
    found = soak("--seconds", "30", "--max-growth", "10", "--samples", str(kept), "--json")
    assert found.exit_code == 0, found.stderr
    rows = json.loads(found.stdout)["rows"]
    assert [row["library"].split()[0] for row in rows] == ["onnxruntime", "llama.cpp"]
    for row in rows:
        assert row["errors"] == []
        assert row["operations"].keys() == KINDS
        assert row["files"][0] == row["files"][1]
        assert row["seconds"] >= 30
        assert row["peak_resident"] >= row["end"] > 1e7
    samples = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    assert len(samples) == sum(len(row["samples"]) for row in rows) == 200
    assert samples[99]["operations"] == sum(rows[0]["operations"].values())


def test_growth_beyond_the_bound_fails(
    soak: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from t1_edge_bench.soak import soak as work

    def grown(*given: Any, **more: Any) -> Any:
        import msgspec

        row = work(*given, **more)
        return msgspec.structs.replace(row, growth=0.02, errors=["documents: EngineError: no"])

    monkeypatch.setattr("t1_edge_bench.soak.soak", grown)
    found = soak("--seconds", "1", "--engine", "onnx")
    assert found.exit_code == 1
    assert "2.00% more memory" in found.stderr
    assert "documents: EngineError: no" in found.stderr
    assert "resident when warm, MB" in found.stdout


def test_samples_that_cannot_be_kept_are_told_of_before_the_work(
    soak: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def work(*given: Any, **more: Any) -> Any:
        raise AssertionError("begun all the same")

    monkeypatch.setattr("t1_edge_bench.soak.soak", work)
    found = soak("--samples", str(tmp_path / "nowhere" / "samples.jsonl"))
    assert found.exit_code == 1
    assert "its folder is missing" in found.stderr


def test_the_work_ends_with_who_asked_for_it(tiny_build: Callable[..., Build]) -> None:
    build = str(tiny_build("llama", "portable").path)
    command = [sys.executable, "-c", "from t1_edge.cli import main; main()", "bench", "soak"]
    command += ["--build", build, "--engine", "onnx", "--threads", "1", "--seconds", "600"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as asked:
        while not (works := _at_work(asked.pid)):
            assert asked.poll() is None
            time.sleep(0.05)
        asked.kill()
    _, alive = psutil.wait_procs(works, timeout=120)
    assert not alive


def _at_work(pid: int) -> list[psutil.Process]:
    """A process's workers, once their callers run; not what tracks their resources."""
    children = psutil.Process(pid).children()
    workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    return [worker for worker in workers if worker.num_threads() > CALLERS]


def test_medians_of_the_second_tenth_and_the_last() -> None:
    assert tenths([9] * 10 + [1, 2, 3, 4, 5, 6, 7, 8, 9, 99] + [0] * 70 + [7] * 10) == (5.5, 7)


def test_resident_memory_grows_with_what_is_held() -> None:
    before = resident_bytes()
    held = b"x" * 50_000_000
    assert resident_bytes() - before > 0.9 * len(held)
    files = open_files()
    with open(os.devnull, "rb"):
        assert open_files() == files + 1
