"""What a command takes, its children's memory included."""

import sys
from pathlib import Path

import pytest

from peers.process_tree import run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")

_HOLD = "import time; held = b'x' * {megabytes} * 10**6; time.sleep(0.5)"
_WITH_CHILD = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {_HOLD.format(megabytes=150)!r}])
{_HOLD.format(megabytes=100)}
child.wait()
print("done")
"""


def test_memory_of_a_tree_is_counted_together(tmp_path: Path) -> None:
    log = tmp_path / "log"
    found = run([sys.executable, "-c", _WITH_CHILD], log=log)
    assert found.returncode == 0
    assert 250e6 < found.peak_resident < 400e6
    assert log.read_text() == "done\n"


def test_a_failure_is_reported(tmp_path: Path) -> None:
    assert run([sys.executable, "-c", "exit(7)"], log=tmp_path / "log").returncode == 7
