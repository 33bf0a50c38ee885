"""Whether llama.cpp may pack weights for the processor's kernels, those for AMX among them.

gcc 12 compiles the latter wrong (llama.cpp's pull request 26954): what a tile looks like never
reaches the processor, and the first product ends the process. So they are tried in a process of
their own, by `t1_edge.engines.llama_trial`, once for a library and machine.
"""

import logging
from typing import Any, Final

import msgspec

from t1_edge import __version__
from t1_edge.cache import remembered
from t1_edge.engines.opening import installed_as
from t1_edge.errors import EngineError
from t1_edge.machine import kernels
from t1_edge.processes import code_name, run_module

_MODULE: Final = "t1_edge.engines.llama_trial"
_SECONDS: Final = 60
_KILLED: Final = -9

_LOG: Final = logging.getLogger(__name__)


class _Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What came of trying.

    Attributes:
        runs: Whether a tiny build's golden vectors came out.
        reason: Why not.
        lasting: Whether it would come out the same another time.
    """

    runs: bool
    reason: str = ""
    lasting: bool = True


def may_pack(api: Any) -> bool:
    """Whether weights may be packed: not where that brings AMX kernels which do not run.

    llama.cpp has one switch for all that packs, so that without AMX other kernels lose it, too. A
    warning says so each time.

    Args:
        api: The module llama_cpp.
    """
    if not has_amx(api):
        return True
    key = [__version__, installed_as("gguf"), kernels()]
    found = remembered("amx", key, _Verdict, _try, keep=lambda verdict: verdict.lasting)
    if not found.runs:
        _LOG.warning(
            "llama.cpp's kernels for AMX are off, since %s: results are right, reading takes about "
            "3 times as long. gcc 12 compiles them wrong, clang 16 does not: CC=clang-16 "
            "CXX=clang++-16 pip install --force-reinstall --no-cache-dir --no-deps "
            "llama-cpp-python==%s",
            found.reason,
            api.__version__,
        )
    return found.runs


def has_amx(api: Any) -> bool:
    """Whether llama.cpp has kernels for AMX, which take packed weights of 4 and of 8 bits.

    Args:
        api: The module llama_cpp.
    """
    return b"AMX_INT8 = 1" in api.llama_print_system_info()


def _try() -> _Verdict:
    try:
        done = run_module(_MODULE, [], seconds=_SECONDS)
    except EngineError as e:
        return _Verdict(runs=False, reason=str(e), lasting=False)
    if done.returncode == 0:
        return _Verdict(runs=True)
    crashed = done.returncode < 0 and done.returncode != _KILLED
    reason = f"what tried them here ended with {code_name(done.returncode)}"
    return _Verdict(runs=False, reason=reason, lasting=crashed)
