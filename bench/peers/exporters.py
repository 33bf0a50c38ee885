"""What a checkpoint's int4 files cost: t1-edge, onnxruntime-genai's builder, llama.cpp's own route.

    python -m peers.exporters CHECKPOINT --work DIR [--only t1-edge]

CHECKPOINT is a Hugging Face folder, such as peers.random_checkpoint makes. Every peer is
installed below DIR in a virtual environment of its own, once, with what pip gives; then they run
one after another, nothing beside them. llama.cpp's route is its convert_hf_to_gguf.py, out of
llama-cpp-python's source distribution, and llama_model_quantize.
"""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click

from peers.process_tree import Taken, run
from t1_edge_bench.table import table

_LARGE: Final = 10**7
"""Bytes: smaller files are metadata."""

LLAMA_CPP: Final = "llama-cpp-python==0.3.36"
_TORCH: Final = "torch==2.13.0"  # the last that is a CPU build where nobody asks for CUDA

_TOLD: Final = (
    "llama_cpp_python",
    "numba",
    "numpy",
    "onnxruntime",
    "onnxruntime-genai",
    "t1-edge",
    "torch",
    "transformers",
)

QUANTIZE: Final = """
import ctypes, sys, llama_cpp
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
source, target = (path.encode() for path in sys.argv[1:])
sys.exit(llama_cpp.llama_model_quantize(source, target, ctypes.byref(parameters)))
"""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A way to int4.

    Attributes:
        name: For the table.
        requirements: What pip installs for it; nothing for what runs in this environment.
        commands: Run one after another. A name in braces stands for one word: {python} of its
            environment, the {checkpoint}, {out}, llama.cpp's {sources}, or a program below.
        between: A file that no engine needs, written by one command for the next.
        written: Pattern of a line of its talk, with the second at which the files were there; for
            who verifies them then.
    """

    name: str
    requirements: tuple[str, ...]
    commands: tuple[str, ...]
    between: str = ""
    written: str = ""


T1_EDGE: Final = Peer(
    name="t1-edge, both formats",
    requirements=(),
    commands=(
        "{python} -c {t1_edge} export {checkpoint} --output {out}/build --contract chat "
        "--calibration none --allow-drift",
    ),
    written=r"asking the float reference .*\(at (\d+) s\)",
)

BUILDER: Final = Peer(
    name="onnxruntime-genai's builder, ONNX",
    requirements=("onnxruntime-genai", "onnxruntime", "onnx-ir", "transformers", _TORCH),
    commands=(
        "{python} -m onnxruntime_genai.models.builder -m {checkpoint} -o {out} -p int4 -e cpu "
        "-c {out}/cache",
    ),
)

LLAMA_CPP_ROUTE: Final = Peer(
    name="llama.cpp's convert and quantize, GGUF",
    requirements=(LLAMA_CPP, "transformers<5", "sentencepiece", "gguf", _TORCH),
    between="float.gguf",
    commands=(
        "{python} {sources}/convert_hf_to_gguf.py {checkpoint} --outtype bf16 "
        "--outfile {out}/float.gguf",
        "{python} -c {quantize} {out}/float.gguf {out}/q4_0.gguf",
    ),
)

PEERS: Final = (T1_EDGE, BUILDER, LLAMA_CPP_ROUTE)

_PROGRAMS: Final = {"t1_edge": "from t1_edge.cli import main; main()", "quantize": QUANTIZE}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a peer took.

    Attributes:
        peer: Its name.
        seconds: By the clock, all its commands together.
        written: Seconds until the files were there, where verifying them follows.
        peak_resident: Most bytes that its processes had resident together.
        files: Bytes of the files that it leaves for engines, by name.
        between: Bytes of what it wrote on the way there.
        versions: Of what ran, as pip names it.
    """

    peer: str
    seconds: float
    written: float
    peak_resident: int
    files: dict[str, int]
    between: int
    versions: dict[str, str]


def measure(peer: Peer, checkpoint: Path, work: Path) -> Row:
    """Run a peer; what it wrote is removed again.

    Args:
        peer: Which.
        checkpoint: A Hugging Face folder.
        work: Where environments and files go.

    Raises:
        click.ClickException: If a command fails; its log stays in `work`.
    """
    places = {**_PROGRAMS, "checkpoint": str(checkpoint), **install(peer, work)}
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    log = work / f"{peer.name.partition(',')[0]}.log"
    log.unlink(missing_ok=True)
    try:
        taken = [_run(command, {**places, "out": str(out)}, log) for command in peer.commands]
        files = {path.name: path.stat().st_size for path in out.rglob("*") if path.is_file()}
    finally:
        shutil.rmtree(out)
    between = files.pop(peer.between, 0)
    seconds = sum(one.seconds for one in taken)
    return Row(
        peer=peer.name,
        seconds=seconds,
        written=_written(peer, log, seconds),
        peak_resident=max(one.peak_resident for one in taken),
        files={name: size for name, size in files.items() if size > _LARGE},
        between=between,
        versions=versions(Path(places["python"])),
    )


def _run(command: str, places: Mapping[str, str], log: Path) -> Taken:
    filled = [_fill(word, places) for word in command.split()]
    taken = run(filled, log=log)
    if taken.returncode:
        raise click.ClickException(f"{filled[0]} ended with code {taken.returncode}: see {log}")
    return taken


def _fill(word: str, places: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda name: places[name[1]], word)


def _written(peer: Peer, log: Path, seconds: float) -> float:
    """When the files were there."""
    if not peer.written:
        return seconds
    found = re.search(peer.written, log.read_text())
    if not found:
        raise click.ClickException(f"{log} does not say when the files were there")
    return float(found[1])


def install(peer: Peer, work: Path) -> dict[str, str]:
    """A peer's python, and llama.cpp's sources where it wants them.

    Args:
        peer: Which.
        work: Below it stands an environment for each.

    Returns:
        Paths by their names in commands.
    """
    if not peer.requirements:
        return {"python": sys.executable}
    folder = work / "venv" / re.sub(r"\W+", "-", peer.name)
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True)
        _pip(python, "install", *peer.requirements)
        (folder / "installed").touch()
    places = {"python": str(python)}
    if LLAMA_CPP in peer.requirements:
        places["sources"] = str(_sources(python, work))
    return places


def _sources(python: Path, work: Path) -> Path:
    """llama.cpp, as it comes in the source distribution."""
    folder = work / "sources"
    if not folder.exists():
        _pip(python, "install", "scikit-build-core")
        options = ("--no-deps", "--no-binary", ":all:", "--no-build-isolation")
        _pip(python, "download", *options, "--dest", str(work), LLAMA_CPP)
        [archive] = work.glob("llama_cpp_python-*.tar.gz")
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
    [found] = folder.glob("*/vendor/llama.cpp")
    return found


def versions(python: Path) -> dict[str, str]:
    """What is installed beside a python, of all that matters here."""
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"], capture_output=True, check=True
    )
    found = {entry["name"]: entry["version"] for entry in json.loads(listed.stdout)}
    return {name: found[name] for name in _TOLD if name in found}


def _pip(python: Path, *arguments: str) -> None:
    subprocess.run([python, "-m", "pip", "--quiet", *arguments], check=True)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--only", help="Peers whose names begin so.", default="")
def main(checkpoint: Path, work: Path, only: str) -> None:
    """Measure every exporter on CHECKPOINT; a JSON line each, and a table."""
    work.mkdir(parents=True, exist_ok=True)
    rows = []
    for peer in PEERS:
        if peer.name.startswith(only):
            rows.append(measure(peer, checkpoint.resolve(), work.resolve()))
            click.echo(json.dumps(asdict(rows[-1])))
    sizes = ["peak resident, GB", "files, GB", "on the way, GB"]
    header = ["exporter", "to write, s", "in all, s", *sizes]
    click.echo(table(header, [_cells(row) for row in rows]))


def _cells(row: Row) -> list[str]:
    sizes = (row.peak_resident, sum(row.files.values()), row.between)
    seconds = [f"{seconds:.0f}" for seconds in (row.written, row.seconds)]
    return [row.peer, *seconds, *(f"{size / 1e9:.2f}" for size in sizes)]


if __name__ == "__main__":
    main()
