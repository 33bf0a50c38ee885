"""What each way to round nano costs: bytes, distance from the float weights, time, memory, nDCG@10.

    python -m peers.quantizers --work DIR [--bench ENTAILMENT_BANK]

Every way is an export by the command, in a process of its own, one after another before anything
else is measured. Cosines and divergences are the gate's; with a data set, nDCG@10 of each format's
direct vectors, and its paired difference to the float build's in ONNX (bootstrap over queries).
JSON lines, and a table. DIR keeps all of it, by what is exported and by what exports it, and a
second run goes on there.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import click
import msgspec

import t1_edge_export
from peers.process_tree import run
from recipes.nano.evaluate import Measured, judge, system_name
from recipes.nano.report import compare
from t1_edge.build import Build, Format, sha256_file
from t1_edge.encoder import Encoder
from t1_edge_bench.datasets import Dataset, load
from t1_edge_bench.search import Searcher
from t1_edge_bench.table import table
from t1_edge_export.decoder import weight_count
from t1_edge_export.models import MODELS, STATISTICS

_NANO: Final = MODELS["nano"]
_OWN: Final = ("--calibration", str(_NANO.folder / STATISTICS))
_FLOAT: Final = "float"

WAYS: Final[Mapping[str, Sequence[str]]] = {
    _FLOAT: ("--profile", "float"),
    "plain rounding": ("--quantizer", "rtn"),
    "search": ("--calibration", "none"),
    "search, weighted": _OWN,
    "GPTQ": ("--quantizer", "gptq"),
    "search, weighted, 5 bits": (*_OWN, "--bits", "5"),
    "search, weighted, 5.5 bits": (*_OWN, "--bits", "5.5"),
    "that, and a graph for documents (ships)": (*_OWN, "--bits", "5.5", "--documents"),
    "GPTQ, 5 bits (native in ONNX)": ("--quantizer", "gptq", "--bits", "5"),
    "Q4_K_M (native in GGUF)": (*_OWN, "--profile", "native", "--format", "gguf"),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A way to round, in one format.

    Attributes:
        way: One of `WAYS`.
        format: "onnx" or "gguf".
        bits: Of a weight, over all of the file.
        size: Bytes that the engine reads; a graph for documents is not among them.
        cosine_mean: At `<emb_token>`, teacher-forced; likewise the next two.
        cosine_p1: 1st percentile.
        cosine_min: The worst.
        divergence: Of the next token's distribution, mean, in nats.
        same: Share of free thoughts of up to 4 tokens that are the float weights'.
        seconds: Of the whole export, in all its formats, verified.
        peak_resident: Bytes that its processes had resident together.
        ndcg: nDCG@10, where it was measured.
        lost: Difference to the float build's, and its 95 % interval.
    """

    way: str
    format: Format
    bits: float
    size: int
    cosine_mean: float
    cosine_p1: float
    cosine_min: float
    divergence: float
    same: float
    seconds: float
    peak_resident: int
    ndcg: float | None = None
    lost: tuple[float, float, float] | None = None


def export(way: str, work: Path) -> list[Row]:
    """Export nano in one way: a row for each format, which `work` keeps.

    Raises:
        click.ClickException: If the export fails; its log stays in `work`.
    """
    place, log, kept = work / way, work / f"{way}.log", work / f"{way}.json"
    if kept.exists():
        return msgspec.json.decode(kept.read_bytes(), type=list[Row])
    shutil.rmtree(place, ignore_errors=True)
    log.unlink(missing_ok=True)
    command = [sys.executable, "-c", "from t1_edge.cli import main; main()", "export", _NANO.base]
    command += ["--adapter", str(_NANO.folder), "--contract", _NANO.name, "--allow-drift"]
    taken = run([*command, "--output", str(place), *WAYS[way]], log=log)
    if taken.returncode:
        raise click.ClickException(f"exporting by {way} failed: see {log}")
    found = rows(way, Build(place), taken.seconds, taken.peak_resident)
    _keep(kept, found)
    return found


def _keep(path: Path, found: object) -> None:
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.encode(found))
    partial.replace(path)


def rows(way: str, build: Build, seconds: float, peak_resident: int) -> list[Row]:
    """A row for each format, from what the gate measured."""
    weights = weight_count(build.manifest.decoder)
    found = []
    for format in build.manifest.formats:
        figures = build.manifest.verification.engines[format]
        found.append(
            Row(
                way=way,
                format=format,
                bits=round(8 * build.size(format) / weights, 2),
                size=build.size(format),
                cosine_mean=figures.cosine_mean,
                cosine_p1=figures.cosine_p1,
                cosine_min=figures.cosine_min,
                divergence=figures.divergence_mean,
                same=figures.free[0].same,
                seconds=seconds,
                peak_resident=peak_resident,
            )
        )
    return found


def ndcg(way: str, format: Format, work: Path, dataset: Dataset) -> Measured:
    """nDCG@10 of the direct vectors of one format, query by query, which `work` keeps."""
    kept = work / f"{way}.{format}.{dataset.name}.json"
    if kept.exists():
        return msgspec.json.decode(kept.read_bytes(), type=Measured)
    with Encoder.load(work / way, engine=format, cache=False) as encoder:
        searcher = Searcher(encoder=encoder, dataset=dataset, say=lambda text: None)
        system = system_name(f"{way} in {format}", 0)
        found = judge(dataset, system, searcher.direct, build=encoder.fingerprint)
    _keep(kept, found)
    return found


def key() -> str:
    """Twelve hex digits that change with what is exported, and with what exports it."""
    package = Path(t1_edge_export.__file__).parent
    files = [*sorted(package.rglob("*.py")), *sorted(_NANO.folder.iterdir())]
    parts = [*(sha256_file(file) for file in files), repr(WAYS), _NANO.base]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _with_ndcg(row: Row, own: Measured, true: Measured) -> Row:
    found = replace(row, ndcg=own.mean)
    if own.system == true.system:
        return found
    [apart] = compare([own, true], own.system, true.system)
    return replace(found, lost=(apart.mean, apart.low, apart.high))


def _cells(row: Row) -> list[str]:
    cosines = [f"{x:.4f}" for x in (row.cosine_mean, row.cosine_p1, row.cosine_min)]
    sizes = [f"{row.bits:.2f}", f"{row.size / 1e6:.0f}"]
    cells = [row.way, row.format, *sizes, *cosines, f"{row.divergence:.3f}", f"{row.same:.0%}"]
    cells += [f"{row.seconds:.0f}", f"{row.peak_resident / 1e9:.2f}"]
    cells.append("" if row.ndcg is None else f"{row.ndcg:.3f}")
    if row.lost is None:
        return [*cells, ""]
    mean, low, high = row.lost
    return [*cells, f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"]


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--bench", type=click.Path(path_type=Path, exists=True), help="entailment-bank.")
@click.option("--way", "ways", type=click.Choice([*WAYS]), multiple=True, help="Which.  [all]")
def main(work: Path, bench: Path | None, ways: tuple[str, ...]) -> None:
    """Round nano in every way, and compare; what was measured before is taken from WORK."""
    work = work / key()
    work.mkdir(parents=True, exist_ok=True)
    chosen = [way for way in WAYS if way == _FLOAT or way in ways or not ways]
    found = [row for way in chosen for row in export(way, work)]
    if bench:
        dataset = load(bench, split="test")
        true = ndcg(_FLOAT, "onnx", work, dataset)
        found = [_with_ndcg(row, ndcg(row.way, row.format, work, dataset), true) for row in found]
    for row in found:
        click.echo(json.dumps(msgspec.to_builtins(row)))
    header = ["rounded by", "format", "bits", "MB", "mean cosine", "1st pct", "worst", "nats"]
    header += ["same thoughts", "s", "GB", "nDCG@10", "less float"]
    click.echo(table(header, [_cells(row) for row in found]))


if __name__ == "__main__":
    main()
