"""The README's Python lines do what their comments say."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from t1_edge.build import Build

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_python_lines_run(nano: Build, own_cache: Path) -> None:
    [lines] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    found: dict[str, Any] = {}
    exec(lines.replace('"nano"', repr(str(nano.path))), found)
    with found["enc"]:
        assert len(found["q"].thought_tokens) <= 16
        assert found["q"].stopped_by in ("budget", "closed", "stop_token")
        assert found["q"].timings.total > 0
        assert found["D"].dtype == np.float32
        assert found["D"].shape == (2, 576)
        assert found["scores"].shape == (2,)


def test_both_commands_are_the_ones_that_ci_runs() -> None:
    script = (Path(__file__).parents[1] / ".ci" / "run").read_text(encoding="utf-8")
    for install in ("pip install '.[cpu,export,bench]'", "pip install -e '.[dev]'"):
        assert install in README
        assert install.partition("install ")[2].removeprefix("-e ") in script
