"""`t1-edge encode`: texts to vectors, from the command line."""

import sys
from typing import TYPE_CHECKING, Any, TextIO

import click

from t1_edge.cli import options
from t1_edge.cli.output import progress, put_json, say

if TYPE_CHECKING:
    from t1_edge.encoder import Encoder


@click.command()
@click.argument("texts", nargs=-1)
@options.build
@click.option("--query", "role", flag_value="query", help="Encode the texts as queries.")
@click.option(
    "--document", "role", flag_value="document", default="document", help="... documents."
)
@click.option("--file", type=click.File(encoding="utf-8"), help="Read a text a line; - is stdin.")
@click.option("--budget", type=click.IntRange(min=0), help="Most tokens of a query's thought.")
@click.option("--output", type=click.Path(dir_okay=False), help="Write float32 [n, d] as .npy.")
@options.engine
@options.device
@options.threads
@options.as_json
def encode(
    texts: tuple[str, ...],
    build: str,
    role: str,
    file: TextIO | None,
    budget: int | None,
    output: str | None,
    engine: Any,
    device: Any,
    threads: int | None,
    as_json: bool,
) -> None:
    """Encode TEXTS, or the lines of a file, as queries or documents.

    Documents over the build's limit are cut; how many is said on stderr and in the JSON.
    """
    from t1_edge.encoder import Encoder

    lines = [*texts, *((line.rstrip("\r\n") for line in file) if file else ())]
    if not lines:
        raise click.UsageError("give texts, or --file")
    with Encoder.load(build, engine=engine, device=device, threads=threads) as encoder:
        rows = _queries(encoder, lines, budget) if role == "query" else _documents(encoder, lines)
        running = f"{encoder.info.library} on {encoder.info.device}"
    cut = sum(row["truncated"] for row in rows)
    if cut:
        say(f"{cut} of {len(rows)} texts were longer than the build reads, and were cut")
    if output:
        _save(output, rows)
        say(f"{len(rows)} vectors of {len(rows[0]['vector'])} dimensions in {output} ({running})")
    if as_json:
        put_json({"build": build, "engine": running, "truncated": cut, "rows": rows})
    elif not output:
        _show(rows)


def _queries(encoder: "Encoder", texts: list[str], budget: int | None) -> list[dict[str, Any]]:
    return [
        {
            "text": text,
            "thought": found.thought,
            "stopped_by": found.stopped_by,
            "seconds": found.timings.total,
            "truncated": found.truncated,
            "vector": found.vector.tolist(),
        }
        for text, found in ((text, encoder.encode_query(text, budget=budget)) for text in texts)
    ]


def _documents(encoder: "Encoder", texts: list[str]) -> list[dict[str, Any]]:
    with progress(len(texts), "encoding") as update:
        found = encoder.embed_documents(texts, truncate=True, progress=update)
    columns = zip(texts, found.tokens, found.truncated, found.vectors, strict=True)
    return [
        {"text": text, "tokens": int(tokens), "truncated": bool(cut), "vector": vector.tolist()}
        for text, tokens, cut, vector in columns
    ]


def _save(path: str, rows: list[dict[str, Any]]) -> None:
    import numpy as np

    vectors = np.array([row["vector"] for row in rows], np.float32)
    try:
        with open(path, "wb") as file:
            np.save(file, vectors, allow_pickle=False)
    except OSError as e:
        raise click.FileError(path, e.strerror or str(e)) from e


def _show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        head = " ".join(f"{x:+.4f}" for x in row["vector"][:6])
        click.echo(f"{row['text'][:60]!r}")
        if "thought" in row:
            click.echo(f"  thought  {row['thought']!r} ({row['stopped_by']})")
        click.echo(f"  vector   {head} ... [{len(row['vector'])}]", file=sys.stdout)
