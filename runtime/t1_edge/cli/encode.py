"""`t1-edge encode`: texts to vectors, from the command line."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import click

from t1_edge.cli import options
from t1_edge.cli.output import check_place, progress, put_json, say
from t1_edge.errors import InputError

if TYPE_CHECKING:
    from t1_edge.encoder import Encoder
    from t1_edge.engines.base import Float32Array


@click.command()
@click.argument("texts", nargs=-1)
@options.build
@click.option("--query", is_flag=True, help="Encode the texts as queries.")
@click.option("--document", is_flag=True, help="... as documents.  [default]")
@click.option("--file", type=click.File("rb"), help="Read a text a line; - is stdin.")
@options.budget
@click.option(
    "--deadline",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Think no longer than fits in so many.",
)
@click.option(
    "--settle",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="COSINE",
    help="End a thought once four tokens more leave the vector within this cosine.",
)
@click.option("--thought", metavar="TEXT", help="Read this as each query's thought; write none.")
@click.option("--no-cache", is_flag=True, help="Think again about queries that are known.")
@click.option("--output", type=click.Path(dir_okay=False), help="Write float32 [n, d] as .npy.")
@options.engine
@options.device
@options.threads
@options.document_graph
@options.batch_size
@options.as_json
def encode(
    texts: tuple[str, ...],
    build: str,
    query: bool,
    document: bool,
    file: IO[bytes] | None,
    budget: int | None,
    deadline: float | None,
    settle: float | None,
    thought: str | None,
    no_cache: bool,
    output: str | None,
    engine: Any,
    device: Any,
    threads: int | None,
    document_graph: Any,
    batch_size: int | None,
    as_json: bool,
) -> None:
    """Encode TEXTS, or the lines of a file, as queries or documents.

    Documents over the build's limit are cut; how many is said on stderr and in the JSON.
    """
    from t1_edge.encoder import Encoder
    from t1_edge.thinking import Settle

    thinking = {
        "deadline": deadline,
        "settle": None if settle is None else Settle(cosine=settle),
        "thought": thought,
    }
    given = {"budget": budget} | thinking
    asked = [name for name, value in given.items() if value is not None]
    asked += ["no-cache"] * no_cache
    if query and document:
        raise click.UsageError("--query or --document: texts are encoded as one of the two")
    if asked and not query:
        raise click.UsageError(f"--{asked[0]} is for queries: give --query")
    if query and document_graph != "auto":
        raise click.UsageError("--document-graph is for documents: leave --query out")
    if query and batch_size:
        raise click.UsageError("--batch-size is for documents: queries run one by one")
    if thought is not None and any(name in asked for name in ("budget", "deadline", "settle")):
        raise click.UsageError(
            "--thought is read, and none is written: leave --budget, --deadline and --settle out"
        )
    if not texts and file is None:
        raise click.UsageError("give texts, or --file")
    check_place(output)
    lines = [*texts, *(_lines(file) if file else ())]
    if file and not lines:
        raise InputError(f"{_place(file)} has no lines")
    if blank := sum(not line.strip() for line in lines):
        say(f"{blank} of {len(lines)} texts are blank, and get a vector as the others do")
    with Encoder.load(
        build,
        engine=engine,
        device=device,
        threads=threads,
        documents=document_graph,
        budget=budget,
        cache=not no_cache,
    ) as encoder:
        if encoder.codec.contract.budget == 0 and (deadline is not None or settle is not None):
            raise InputError(
                "--deadline and --settle end a thought, and with a budget of 0 there is none: give "
                "--budget"
            )
        rows = (
            _queries(encoder, lines, thinking) if query else _documents(encoder, lines, batch_size)
        )
        ran = encoder.info if query else encoder.read_by()
        running = f"{ran.library} on {ran.device}"
        source = {"build": build, "fingerprint": encoder.fingerprint, "engine": running}
    cut = sum(row.truncated for row in rows)
    if cut:
        say(f"{cut} of {len(rows)} texts were longer than the build reads, and were cut")
    if output:
        _save(output, rows)
        say(f"float32 [{len(rows)}, {len(rows[0].vector)}] in {output} ({running})")
    if as_json:
        data = [row.about | {"vector": row.vector.tolist()} for row in rows]
        put_json(source | {"graph": ran.graph, "truncated": cut, "rows": data})
    elif not output:
        _show(rows)
        say(f"by {running}, the graph for {ran.graph}")


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A text, its vector (float32 [d]), and what else is told of it."""

    text: str
    vector: "Float32Array"
    truncated: bool
    more: Mapping[str, Any]

    @property
    def about(self) -> dict[str, Any]:
        """All but the vector, as JSON has it."""
        return {"text": self.text, **self.more, "truncated": self.truncated}


def _lines(file: IO[bytes]) -> list[str]:
    found = []
    for number, line in enumerate(file, 1):
        try:
            found.append(line.decode("utf-8").rstrip("\r\n"))
        except UnicodeDecodeError as e:
            raise InputError(f"{_place(file)}:{number} is no UTF-8: {e}") from e
    return found


def _place(file: IO[bytes]) -> str:
    return "stdin" if file is sys.stdin.buffer else getattr(file, "name", "the file")


def _queries(encoder: "Encoder", texts: list[str], thinking: Mapping[str, Any]) -> list[_Row]:
    return [
        _Row(
            text=text,
            vector=found.vector,
            truncated=found.truncated,
            more={
                "thought": found.thought,
                "stopped_by": found.stopped_by,
                "seconds": found.timings.total,
                "cached": found.cached,
            },
        )
        for text, found in ((text, encoder.encode_query(text, **thinking)) for text in texts)
    ]


def _documents(encoder: "Encoder", texts: list[str], batch_size: int | None) -> list[_Row]:
    with progress(len(texts), "encoding") as update:
        found = encoder.embed_documents(
            texts, truncate=True, batch_size=batch_size, progress=update
        )
    columns = zip(texts, found.tokens, found.truncated, found.vectors, strict=True)
    return [
        _Row(text=text, vector=vector, truncated=bool(cut), more={"tokens": int(tokens)})
        for text, tokens, cut, vector in columns
    ]


def _save(path: str, rows: list[_Row]) -> None:
    import numpy as np

    try:
        with open(path, "wb") as file:
            np.save(file, np.stack([row.vector for row in rows]), allow_pickle=False)
    except OSError as e:
        raise click.FileError(path, e.strerror or str(e)) from e


def _show(rows: list[_Row]) -> None:
    for row in rows:
        head = " ".join(f"{x:+.4f}" for x in row.vector[:6])
        click.echo(f"{row.text[:60]!r}")
        if "thought" in row.more:
            thought = f"{row.more['thought']!r} ({row.more['stopped_by']})"
            click.echo(f"  thought  {thought if row.more['thought'] else 'none'}")
        click.echo(f"  vector   {head} ... [{len(row.vector)}]")
