"""`t1-edge demo`: the whole path, once, on real weights."""

import click

from t1_edge.cli import options
from t1_edge.cli.output import progress, put_json, say


@click.command()
@click.option("--fresh", is_flag=True, help="Export again even if the cache has the build.")
@options.as_json
def demo(fresh: bool, as_json: bool) -> None:
    """Pull a small model, export it, and search Python's language reference with it.

    The model was never trained to embed: its figures show that the path works, not what a trained
    T1 finds.
    """
    import msgspec

    from t1_edge_bench import demo as path
    from t1_edge_bench.pydoc import passages

    say("SmolLM2-135M-Instruct: no training as an encoder, so expect retrieval near chance")
    with progress(path.weights(say), "quantizing") as update:
        build = path.prepare(say, update, fresh=fresh)
    rows = [path.baseline()]
    answers: list[path.Answer] = []
    for format in build.manifest.formats:
        with progress(len(passages()), "encoding") as update:
            row, answers = path.measure(build, format, say, update)
        rows.append(row)
    if as_json:
        shown = [vars(answer) for answer in answers]
        put_json({"rows": msgspec.to_builtins(rows), "answers": shown})
        return
    click.echo(f"As {rows[-1].format} answers:")
    for answer in answers:
        click.echo(f"\n? {answer.question}")
        click.echo(f"  thought  {answer.thought}")
        click.echo(f"  found    {', '.join(answer.topics)}")
    click.echo(f"\n{path.show(rows)}")
