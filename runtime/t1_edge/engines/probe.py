"""Whether an engine really runs on a device: a tiny build that ships is opened and asked.

Its golden vectors must come out, as any build's. A driver that is broken may take the process with
it, so that the probe runs in one of its own:

    python -m t1_edge.engines.probe FORMAT DEVICE

The build is a random Llama of one block, made by recipes/probe.
"""

import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from t1_edge import __version__
from t1_edge.build import Build, Format
from t1_edge.cache import remembered
from t1_edge.engines.devices import DeviceName, obstacle
from t1_edge.engines.nvidia import driver_version, gpus_in_sight
from t1_edge.engines.opening import installed_as, library_of, open_format
from t1_edge.errors import EngineError, T1Error
from t1_edge.golden import check
from t1_edge.machine import kernels
from t1_edge.processes import how_ended, is_frozen, run_module

PROBE_BUILD: Final = Path(__file__).parents[1] / "data" / "probe"

_MODULE: Final = "t1_edge.engines.probe"
_SECONDS: Final = 120
"""After which a probe counts as hung: a first use of a GPU may compile kernels for a while."""


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What came of running a tiny build.

    Attributes:
        format: Whose engine.
        device: Where.
        ran: Whether its golden vectors came out.
        library: The engine's library and its version; "" if it cannot be loaded.
        seconds: From loading the library to the vectors, or to what stood in the way.
        reason: Why it did not run, with what to do; "" if it did.
    """

    format: Format
    device: DeviceName
    ran: bool
    library: str = ""
    seconds: float = 0.0
    reason: str = ""


def probe(format: Format, device: DeviceName) -> Probe:
    """Run the tiny build in a process of its own.

    In a frozen app, whose interpreter is the app, it runs in this process.

    Args:
        format: Whose engine.
        device: Where.
    """
    if is_frozen():
        return _run(format, device)
    try:
        done = run_module(_MODULE, [format, device], seconds=_SECONDS)
    except EngineError as e:
        return Probe(format=format, device=device, ran=False, reason=str(e))
    try:
        return msgspec.json.decode(done.stdout.strip().rpartition("\n")[2], type=Probe)
    except msgspec.MsgspecError:
        reason = f"the process that tried {how_ended(done.returncode, done.stderr)}"
        return Probe(format=format, device=device, ran=False, reason=reason)


def ran_before(format: Format, device: DeviceName) -> Probe:
    """What came of the tiny build on a device, once for each library, driver, GPUs and t1-edge.

    That it ran is kept in the cache; that it did not is tried again.

    Args:
        format: Whose engine; its library is installed.
        device: Where.

    Raises:
        EngineError: If the library cannot be loaded.
        MissingExtraError: If it is not installed.
    """
    return _remembered(format, device, lambda: probe(format, device))


def keep(found: Probe) -> None:
    """Have `ran_before` know what came of a tiny build just now, whatever was kept.

    Args:
        found: What came of it; the engine's library can be loaded.

    Raises:
        EngineError: If it cannot.
        MissingExtraError: If it is not installed.
    """
    _remembered(found.format, found.device, lambda: found, again=True)


def _remembered(
    format: Format, device: DeviceName, find: Callable[[], Probe], *, again: bool = False
) -> Probe:
    system = [driver_version(), gpus_in_sight(), kernels()]
    key = [__version__, device, installed_as(format), system]
    return remembered("probed", key, Probe, find, again=again, keep=lambda found: found.ran)


def _run(format: Format, device: DeviceName) -> Probe:
    """Run the tiny build in this process."""
    began = time.monotonic()
    try:
        library, reason = library_of(format), obstacle(format, device)
        if reason is None:
            library = _check_tiny(format, device)
    except T1Error as e:
        library, reason = "", str(e)
    return Probe(
        format=format,
        device=device,
        ran=reason is None,
        library=library,
        seconds=time.monotonic() - began,
        reason=reason or "",
    )


def _check_tiny(format: Format, device: DeviceName) -> str:
    """Have the tiny build's golden vectors come out; what ran."""
    build = Build(PROBE_BUILD)
    decoder = build.manifest.decoder
    with closing(
        open_format(build.path, format, decoder, exact=False, device=device, threads=1)
    ) as engine:
        check(build, engine)
        return engine.info.library


if __name__ == "__main__":
    asked = msgspec.convert(sys.argv[1:], tuple[Format, DeviceName])
    sys.stdout.write(msgspec.json.encode(_run(*asked)).decode() + "\n")
