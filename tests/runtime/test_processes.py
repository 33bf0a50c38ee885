"""Processes that should answer, and how they ended."""

import re
import signal
import subprocess
import sys

import pytest

from t1_edge.errors import EngineError
from t1_edge.processes import how_ended, run_module


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("import sys; sys.exit('out of paper')", r"ended with code 1: out of paper"),
        ("exit(3)", r"ended with code 3: it said nothing"),
        (f"import os; os.kill(os.getpid(), {signal.SIGTERM})", r"ended with SIGTERM: it said noth"),
        (
            f"import os; os.kill(os.getpid(), {signal.SIGKILL})",
            r"killed \(SIGKILL\), as",
        ),
        (
            "import os, sys; print('tile', file=sys.stderr, flush=True); "
            f"os.kill(os.getpid(), {signal.SIGILL})",
            r"an instruction that does not run here \(SIGILL\), .*: tile$",
        ),
    ],
)
def test_a_process_that_ended_says_how(script: str, expected: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert re.search(expected, how_ended(done.returncode, done.stderr))


def test_a_signal_without_a_name_is_told_by_its_number() -> None:
    assert how_ended(-200, "x") == "ended with code -200: x"


def test_a_module_runs_and_what_it_says_comes_back() -> None:
    done = run_module("base64", ["-t"], seconds=60)
    assert done.returncode == 0
    assert "Aladdin" in done.stdout


def test_a_module_that_hangs_is_ended() -> None:
    with pytest.raises(EngineError, match="timed out"):
        run_module("asyncio", [], seconds=0.01)


def test_a_frozen_app_has_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.frozen", True, raising=False)
    with pytest.raises(EngineError, match="frozen"):
        run_module("this", [], seconds=60)
