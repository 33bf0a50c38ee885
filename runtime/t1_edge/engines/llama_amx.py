"""Whether llama.cpp's kernels for AMX run here: a tiny build that ships is opened with them.

gcc 12 compiles them wrong (llama.cpp's pull request 26954): what a tile looks like never reaches
the processor, and the first product ends the process. So they are tried in one of its own, once for
a library and machine:

    python -m t1_edge.engines.llama_amx
"""

import logging
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from t1_edge.cache import remembered
from t1_edge.machine import kernels

_MODULE: Final = "t1_edge.engines.llama_amx"
_THREADS: Final = 2  # each has tiles of its own
_SECONDS: Final = 60

_LOG: Final = logging.getLogger(__name__)


def has_amx(api: Any) -> bool:
    """Whether llama.cpp was compiled for processors with AMX.

    Args:
        api: The module llama_cpp.
    """
    return b"AMX_INT8 = 1" in api.llama_print_system_info()


def amx_runs(api: Any) -> bool:
    """Whether its AMX kernels compute what a tiny build's golden vectors say.

    A frozen app, whose interpreter is the app, has no process to try them in: there they do not.

    Args:
        api: The module llama_cpp, with AMX.
    """
    if getattr(sys, "frozen", False) or not sys.executable:
        return False
    compiled = Path(api.__file__)
    key = [str(compiled), compiled.stat().st_mtime_ns, api.__version__, kernels()]
    return remembered("amx", key, bool, _try)


def _try() -> bool:
    command = [sys.executable, "-P", "-m", _MODULE]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (subprocess.TimeoutExpired, OSError) as e:
        _LOG.warning("no process could try llama.cpp's AMX kernels, which stay off: %s", e)
        return False
    if done.returncode:
        _LOG.warning(
            "llama.cpp's AMX kernels do not run here, and stay off (code %d: %s); compiled without "
            "them it is faster: see docs/devices.md",
            done.returncode,
            done.stderr.strip()[-300:],
        )
    return done.returncode == 0


def _run() -> None:
    """Have the tiny build's golden vectors come out."""
    from t1_edge.build import GGUF_MODEL, Build
    from t1_edge.engines.llama import LlamaEngine
    from t1_edge.engines.probe import PROBE_BUILD
    from t1_edge.golden import check

    build = Build(PROBE_BUILD)
    decoder, model = build.manifest.decoder, build.path / GGUF_MODEL
    with closing(LlamaEngine(model, decoder, threads=_THREADS, amx=True)) as engine:
        check(build, engine)


if __name__ == "__main__":
    _run()
