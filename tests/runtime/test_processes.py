"""How a process ended, in words."""

import signal
import subprocess
import sys

import pytest

from t1_edge.processes import how_ended


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("import sys; sys.exit('out of paper')", "ended with code 1: out of paper"),
        ("exit(3)", "ended with code 3: it said nothing"),
        (f"import os; os.kill(os.getpid(), {signal.SIGTERM})", "ended with code -15: it said noth"),
        (f"import os; os.kill(os.getpid(), {signal.SIGKILL})", "was killed, as systems do"),
        (f"import os; os.kill(os.getpid(), {signal.SIGILL})", "compiled for another processor"),
    ],
)
def test_a_process_that_ended_says_how(script: str, expected: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert expected in how_ended(done.returncode, done.stderr)
