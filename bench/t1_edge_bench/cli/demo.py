"""`t1-edge demo`: the whole path, once, on real weights."""

import click

from t1_edge.cli import options
from t1_edge.cli.output import progress, put_json, say


@click.command()
@click.option("--fresh", is_flag=True, help="Export again even if the cache has the build.")
@options.as_json
def demo(fresh: bool, as_json: bool) -> None:
    """Pull nano, export it, and search Python's language reference with it.

    The questions were written for this project, in the words of someone who does not know the term;
    nano was not trained on them, nor on the reference.
    """
    import msgspec

    from t1_edge.engines.opening import installed_formats
    from t1_edge_bench import demo as path
    from t1_edge_bench.pydoc import passages
    from t1_edge_export.cli.pull import model_build
    from t1_edge_export.models import MODELS

    build = model_build(MODELS["nano"], fresh=fresh)
    rows = [path.baseline()]
    answers: list[path.Answer] = []
    for format in installed_formats(build):
        with progress(len(passages()), "encoding") as update:
            row, answers = path.measure(build, format, say, update)
        rows.append(row)
    if as_json:
        shown = [vars(answer) for answer in answers]
        put_json({"rows": msgspec.to_builtins(rows), "answers": shown})
        return
    click.echo(f"As {rows[-1].format} answers (* is right):")
    for answer in answers:
        click.echo(f"\n? {answer.question}")
        if thought := " ".join(answer.thought.split()):
            click.echo(f"  thought  {thought}")
        topics = [f"{'*' if topic in answer.right else ''}{topic}" for topic in answer.topics]
        click.echo(f"  found    {', '.join(topics)}")
    click.echo(f"\n{path.show(rows)}")
