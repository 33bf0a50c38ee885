"""Who rounds nano's weights to int4 best: t1-edge, llama.cpp, or onnxruntime-genai's builder.

    python -m peers.rounding --work DIR

All begin from the same float weights, and are asked for the golden rows' vectors, each by the
engine that its files are for. Cosines to the float reference; JSON lines, and a table.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import click
import numpy as np
from numpy.typing import NDArray

from peers.int4 import quantize_by_builder, quantize_by_llama_cpp
from t1_edge.build import GOLDEN, Build, Decoder, Format
from t1_edge.engines.base import Float32Array
from t1_edge.engines.opening import open_format
from t1_edge.golden import Golden, run_rows
from t1_edge.vectors import cosines
from t1_edge_bench.table import table
from t1_edge_export.checkpoint import Checkpoint
from t1_edge_export.models import MODELS
from t1_edge_export.pipeline import export

_NANO: Final = MODELS["nano"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Somebody's int4.

    Attributes:
        who: Made the files.
        format: Whose engine ran them.
        size: Bytes that the engine reads.
        cosine_mean: To the float reference, at `<emb_token>`, teacher-forced.
        cosine_p1: 1st percentile.
        cosine_min: The worst.
    """

    who: str
    format: Format
    size: int
    cosine_mean: float
    cosine_p1: float
    cosine_min: float


def ours(who: str, build: Build) -> Iterator[Row]:
    """A build's formats, by its own gate, which asked the same rows."""
    for format in build.manifest.formats:
        figures = build.manifest.verification.engines[format]
        yield Row(
            who=who,
            format=format,
            size=build.size(format),
            cosine_mean=figures.cosine_mean,
            cosine_p1=figures.cosine_p1,
            cosine_min=figures.cosine_min,
        )


def llama_cpp(checkpoint: Checkpoint, golden: Golden, work: Path) -> Row:
    """llama.cpp's own Q4_0."""
    model = quantize_by_llama_cpp(checkpoint, work / "llama.cpp", work)
    with closing(open_format(model.parent, "gguf", checkpoint.decoder, exact=False)) as engine:
        vectors = run_rows(engine, golden.rows)
    near = cosines(vectors, golden.vectors)
    return _row("llama.cpp, Q4_0", "gguf", model.stat().st_size, near)


def builder(checkpoint: Checkpoint, golden: Golden, work: Path) -> Row:
    """The int4 of onnxruntime-genai's builder."""
    graph = quantize_by_builder(checkpoint, work / "builder", work)
    vectors = _run_graph(graph, checkpoint.decoder, golden.rows)
    size = sum(path.stat().st_size for path in graph.parent.glob(f"{graph.name}*"))
    who = "onnxruntime-genai's builder, int4"
    return _row(who, "onnx", size, cosines(vectors, golden.vectors))


def _row(who: str, format: Format, size: int, near: NDArray[np.float64]) -> Row:
    return Row(
        who=who,
        format=format,
        size=size,
        cosine_mean=float(near.mean()),
        cosine_p1=float(np.percentile(near, 1)),
        cosine_min=float(near.min()),
    )


def _run_graph(graph: Path, decoder: Decoder, rows: Sequence[Sequence[int]]) -> Float32Array:
    """Unit vectors of whole rows, float32 [n, d], by a graph of the builder's."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    nothing = np.empty((1, decoder.kv_heads, 0, decoder.head_dim), np.float32)
    names = [entry.name for entry in session.get_inputs()]
    past = {name: nothing for name in names if name.startswith("past_key_values")}
    found = []
    for row in rows:
        ids = np.array([row], np.int64)
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids), **past}
        [states] = session.run(["hidden_states"], given)
        found.append(states.reshape(-1, decoder.hidden)[-1])
    vectors = np.stack(found)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@click.command()
@click.option("--work", type=click.Path(path_type=Path, resolve_path=True), required=True)
def main(work: Path) -> None:
    """Round nano's float weights in every way, and compare."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = _NANO.open(click.echo)
    request = _NANO.request(checkpoint, ("onnx", "gguf"))
    shipped = export(checkpoint, replace(request, destination=work / "nano"))
    golden = Golden.load(shipped.file(GOLDEN))
    small = export(checkpoint, replace(request, destination=work / "small", budget=None))
    rows = [*ours("t1-edge, as it ships", shipped), *ours("t1-edge, 4.5 bits", small)]
    rows += [llama_cpp(checkpoint, golden, work), builder(checkpoint, golden, work)]
    for row in rows:
        click.echo(json.dumps(asdict(row)))
    header = ["rounded by", "format", "MB", "mean cosine", "1st pct", "worst"]
    click.echo(table(header, [_cells(row) for row in rows]))


def _cells(row: Row) -> list[str]:
    near = (row.cosine_mean, row.cosine_p1, row.cosine_min)
    return [row.who, row.format, f"{row.size / 1e6:.0f}", *(f"{cosine:.4f}" for cosine in near)]


if __name__ == "__main__":
    main()
