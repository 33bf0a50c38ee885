"""`t1-edge bench`: what a build finds, and what it costs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from t1_edge.cli import options
from t1_edge.cli.output import check_place, progress, put_json, say

if TYPE_CHECKING:
    from t1_edge.build import Format
    from t1_edge_bench.soak import SoakRow


class _Listed(click.ParamType[list[Any]]):
    """A list of something, such as 0,16.

    Args:
        item: What each of it is.
        name: How help names the list.
    """

    def __init__(self, item: click.ParamType[Any], name: str) -> None:
        self._item = item
        self.name = name

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[Any]:
        if isinstance(value, list):
            return value
        return [self._item.convert(part.strip(), param, ctx) for part in str(value).split(",")]


_budgets = click.option(
    "--budget",
    "budgets",
    type=_Listed(click.IntRange(min=0), "TOKENS,…"),
    default="0,16",
    show_default=True,
    help="Most tokens of a thought; several are measured one after the other.",
)


@click.group()
def bench() -> None:
    """Measure a build: what it finds, and what it costs."""


@bench.command()
@options.build
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A BEIR-shaped folder.  [default: the demo's questions about Python]",
)
@click.option("--split", help="Which queries of --data, where it has several sets.")
@_budgets
@click.option(
    "--settle",
    "cosines",
    type=_Listed(click.FloatRange(0, 1, min_open=True), "COSINE,…"),
    default=[],
    help="Measure, too, thoughts that end once their vector has come to rest: at this cosine.",
)
@click.option(
    "--settle-every",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="How often settling looks at the vector.  [default: 4]",
)
@click.option("--one-by-one", is_flag=True, help="Ask one query at a time, not in batches.")
@click.option("--limit-queries", type=click.IntRange(min=1), help="Ask only the first so many.")
@options.engine
@options.device
@options.threads
@options.document_graph
@options.batch_size
@options.as_json
def quality(
    build: str,
    data: Path | None,
    split: str | None,
    budgets: list[int],
    cosines: list[float],
    settle_every: int | None,
    one_by_one: bool,
    limit_queries: int | None,
    engine: Any,
    device: Any,
    threads: int | None,
    document_graph: Any,
    batch_size: int | None,
    as_json: bool,
) -> None:
    """What a build finds, what BM25 finds and what both do, among judged documents.

    nDCG@10 and recall@100 are means over the queries.

    BM25 reads the query, and, where a build thinks, the query five times and its thought once. The
    hybrid fuses, by ranks (RRF), the vector without a thought and BM25, to which a thought is worth
    more.

    Without --data, the demo's 110 questions search passages of the language reference that came
    with this Python; another version's figures are others. Topics answer a question, and each ranks
    where its best passage does.

    With --data, the folder holds corpus.jsonl[.gz], queries[.SPLIT].jsonl[.gz], qrels[.SPLIT].tsv
    and may hold excluded.tsv. Search is exact. Document vectors are cached: a second budget encodes
    the queries alone.
    """
    import msgspec

    from t1_edge.encoder import Encoder
    from t1_edge.thinking import Settle
    from t1_edge_bench import pydoc
    from t1_edge_bench.cli.tables import quality_table
    from t1_edge_bench.datasets import load
    from t1_edge_bench.quality import quality as measure

    if cosines and not any(budgets):
        raise click.UsageError("--settle is for thoughts: give a --budget above 0")
    if settle_every and not cosines:
        raise click.UsageError("--settle-every is for --settle: give that too")
    if split is not None and data is None:
        raise click.UsageError("--split is for a folder: give --data too")
    settles = [Settle(cosine=cosine, every=settle_every or 4) for cosine in cosines]
    dataset = (
        load(data, split=split, limit_queries=limit_queries)
        if data is not None
        else pydoc.dataset(limit_queries=limit_queries)
    )
    with (
        Encoder.load(
            build,
            engine=engine,
            device=device,
            threads=threads,
            documents=document_graph,
            cache=False,
        ) as encoder,
        progress(len(dataset.documents), "encoding documents") as update,
    ):
        reader = encoder.read_by()
        say(f"{build} on {encoder.info.library}, {encoder.info.device}")
        say(f"documents by {reader.library}, the graph for {reader.graph}")
        rows = measure(
            encoder,
            dataset,
            budgets,
            build=build,
            settles=settles,
            one_by_one=one_by_one,
            batch_size=batch_size,
            say=say,
            progress=update,
        )
    if as_json:
        put_json({"rows": msgspec.to_builtins(rows)})
    else:
        click.echo(quality_table(rows))


@bench.command()
@options.build
@_budgets
@click.option(
    "--documents",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Texts of 150 words to read; a large build wants few.",
)
@click.option(
    "--queries",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Queries to embed, at each budget.",
)
@options.engine
@options.threads
@options.as_json
def latency(
    build: str,
    budgets: list[int],
    documents: int,
    queries: int,
    engine: Any,
    threads: int | None,
    as_json: bool,
) -> None:
    """Load, prefill, thinking, time to vector, memory; each engine in a process of its own."""
    import msgspec

    from t1_edge_bench.cli.tables import latency_table
    from t1_edge_bench.latency import latency as measure

    rows = [
        measure(
            build,
            budgets,
            engine=name,
            documents=documents,
            queries=queries,
            threads=threads,
            say=say,
        )
        for name in _engines(build, engine)
    ]
    if as_json:
        put_json({"rows": msgspec.to_builtins(rows, str_keys=True)})
    else:
        click.echo(latency_table(rows))


@bench.command()
@options.build
@click.option(
    "--documents",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    help="Texts of 150 words that are read together.",
)
@click.option(
    "--thoughts",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="How many are written together.",
)
@click.option(
    "--passes",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="How many are timed, alone and watched; a large build wants few.",
)
@options.engine
@options.threads
@options.as_json
def profile(
    build: str,
    documents: int,
    thoughts: int,
    passes: int,
    engine: Any,
    threads: int | None,
    as_json: bool,
) -> None:
    """Where the time of reading and of thinking goes, by parts of the model, on the CPU.

    Every engine that can drive the build is profiled, unless --engine names one. Shares are of the
    time of all operations in the median pass, as ONNX Runtime's own profile has it in whole
    microseconds, or as llama.cpp calls back around each, with what it takes to start one: small
    operations seem larger there. The median of passes that nobody watched, just before, stands
    below; on a busy machine it may be the longer one.
    """
    import msgspec

    from t1_edge_bench.cli.tables import profile_table
    from t1_edge_bench.profiling import profile as measure

    rows = [
        row
        for name in _engines(build, engine)
        for row in measure(
            build,
            engine=name,
            documents=documents,
            thoughts=thoughts,
            passes=passes,
            threads=threads,
            say=say,
        )
    ]
    if as_json:
        put_json({"rows": msgspec.to_builtins(rows)})
    else:
        click.echo(profile_table(rows))


@bench.command()
@options.build
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=3600.0,
    show_default=True,
    help="How long each engine works, a hundred calls of each thread at least.",
)
@click.option(
    "--max-growth",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="PERCENT",
    help="How much more memory may be resident in the last tenth of the time than in the second.",
)
@click.option("--seed", default=0, show_default=True, help="What the work is drawn from.")
@click.option(
    "--samples",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Keep what each pause found, as JSON lines.",
)
@options.engine
@options.threads
@options.as_json
def soak(
    build: str,
    seconds: float,
    max_growth: float,
    seed: int,
    samples: Path | None,
    engine: Any,
    threads: int | None,
    as_json: bool,
) -> None:
    """Mixed work for an hour; fails if memory grew, or anything went wrong that should not.

    Four threads call one encoder: queries at several budgets, documents, deadlines, streams that
    are given up, thoughts that settle or are given, and calls that must be refused. Each engine
    runs in a process of its own. Memory is read in a hundred pauses.
    """
    import msgspec

    from t1_edge.errors import EngineError
    from t1_edge_bench.cli.tables import soak_table
    from t1_edge_bench.soak import soak as work

    check_place(samples)
    rows = []
    for name in _engines(build, engine):
        say(f"{name} works for {seconds:g} s")
        rows.append(work(build, engine=name, seconds=seconds, threads=threads, seed=seed))
    if samples:
        _keep_samples(samples, rows)
    if as_json:
        put_json({"rows": msgspec.to_builtins(rows)})
    else:
        click.echo(soak_table(rows))
    wrong = [error for row in rows for error in row.errors]
    wrong += [
        f"{row.library} has {row.growth:.2%} more memory resident than when it was warm"
        for row in rows
        if row.growth * 100 > max_growth
    ]
    if wrong:
        raise EngineError("; ".join(wrong))


def _engines(build: str, engine: Any) -> "Sequence[Format]":
    """Those that are asked for: each that can drive the build, if none is named."""
    from t1_edge.build import Build
    from t1_edge.cache import find_build
    from t1_edge.engines.opening import usable_formats

    return usable_formats(Build(find_build(build))) if engine == "auto" else [engine]


def _keep_samples(path: Path, rows: list["SoakRow"]) -> None:
    import msgspec

    lines = [
        msgspec.json.encode({"library": row.library} | msgspec.to_builtins(sample))
        for row in rows
        for sample in row.samples
    ]
    try:
        path.write_bytes(b"\n".join([*lines, b""]))
    except OSError as e:
        raise click.FileError(str(path), e.strerror or str(e)) from e
