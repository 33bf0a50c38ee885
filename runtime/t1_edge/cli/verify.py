"""`t1-edge verify`: whether a build is what it says, as far as it shows without a checkpoint."""

import click

from t1_edge.cli import options
from t1_edge.cli.output import put_json, say


@click.command()
@options.build_argument
@options.threads
@options.as_json
def verify(build: str, threads: int | None, as_json: bool) -> None:
    """Check BUILD: its schema, every file's hash, its golden vectors on every engine installed."""
    from contextlib import closing

    from t1_edge.build import Build
    from t1_edge.cache import find_build
    from t1_edge.engines.opening import installed_formats
    from t1_edge.engines.select import open_engine
    from t1_edge.golden import check

    opened = Build(find_build(build))
    say(f"{opened.path}: schema and sizes are right; reading {len(opened.manifest.files)} files")
    opened.check_hashes()
    formats = installed_formats(opened)
    checked = {}
    for format in formats:
        with closing(open_engine(opened, engine=format, threads=threads)) as engine:
            worst = check(opened, engine)
            floor = opened.manifest.verification.engines[format].floor
            checked[format] = {"library": engine.info.library, "worst": worst, "floor": floor}
    unchecked = [format for format in opened.manifest.formats if format not in formats]
    if as_json:
        put_json({"build": str(opened.path), "golden": checked, "not_installed": unchecked})
        return
    click.echo("every hash is right")
    for format, found in checked.items():
        click.echo(f"{format}: worst golden cosine {found['worst']:.4f} ({found['library']})")
    for format in unchecked:
        click.echo(f"{format}: not checked, its engine is not installed")
