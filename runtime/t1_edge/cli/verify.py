"""`t1-edge verify`: whether a build is what it says, as far as it shows without a checkpoint."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from t1_edge.cli import options
from t1_edge.cli.output import put_json, say

if TYPE_CHECKING:
    from t1_edge.engines.base import Engine


@click.command()
@options.build_argument
@options.threads
@options.as_json
def verify(build: str, threads: int | None, as_json: bool) -> None:
    """Check BUILD: its schema, every file's hash, its golden vectors on every engine installed."""
    from contextlib import closing
    from functools import partial

    from t1_edge.build import Build
    from t1_edge.cache import find_build
    from t1_edge.engines.opening import installed_formats, open_documents
    from t1_edge.engines.select import open_engine
    from t1_edge.golden import check

    opened = Build(find_build(build))
    say(f"{opened.path}: schema and sizes are right; reading {len(opened.manifest.files)} files")
    opened.check_hashes()
    formats = installed_formats(opened)
    checked = {}
    openers: dict[str, Callable[[], Engine]] = {
        format: partial(open_engine, opened, engine=format, threads=threads) for format in formats
    }
    if opened.has_documents_graph and "onnx" in formats:
        decoder = opened.manifest.decoder
        openers["documents"] = partial(open_documents, opened.path, decoder, threads=threads)
    for name, opener in openers.items():
        with closing(opener()) as engine:
            worst = check(opened, engine)
            info = engine.info
            floor = opened.manifest.verification.floor(info.engine, info.graph)
            checked[name] = {"library": engine.info.library, "worst": worst, "floor": floor}
    unchecked = [format for format in opened.manifest.formats if format not in formats]
    if as_json:
        put_json({"build": str(opened.path), "golden": checked, "not_installed": unchecked})
        return
    click.echo("every hash is right")
    for name, found in checked.items():
        click.echo(f"{name}: worst golden cosine {found['worst']:.4f} ({found['library']})")
    for format in unchecked:
        click.echo(f"{format}: not checked, its engine is not installed")
