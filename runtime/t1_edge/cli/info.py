"""`t1-edge info`: what a build is."""

import click

from t1_edge.cli import options
from t1_edge.cli.output import put_json


@click.command()
@options.build_argument
@options.as_json
def info(build: str, as_json: bool) -> None:
    """Say what BUILD (a directory, or a name in the cache) is.

    Sizes are checked, hashes are not: that is `t1-edge verify`.
    """
    import msgspec

    from t1_edge.build import DOCUMENTS_GRAPH, DOCUMENTS_WEIGHTS, Build
    from t1_edge.cache import find_build

    opened = Build(find_build(build))
    manifest = opened.manifest
    if as_json:
        put_json({"path": str(opened.path)} | msgspec.to_builtins(manifest))
        return
    decoder, contract, found = manifest.decoder, manifest.contract, manifest.verification
    click.echo(f"{manifest.name}  {opened.path}")
    source = manifest.source
    commit = f"@{source.revision}" if source.revision else ""
    click.echo(f"source       {source.id}{commit} ({source.licence})")
    click.echo(f"decoder      {decoder.family}, {decoder.layers} blocks, {decoder.hidden} wide")
    click.echo(f"profile      {manifest.profile}  {manifest.encodings}")
    click.echo(
        f"reads        {contract.max_query_tokens} tokens for a query, "
        f"{contract.max_document_tokens} for a document, templates included"
    )
    click.echo(f"budget       {contract.budget} tokens")
    click.echo(f"fingerprint  {manifest.fingerprint}")
    for format in manifest.formats:
        figures = found.engines[format]
        click.echo(
            f"{format:<12} {opened.size(format) / 1e6:,.0f} MB, cosine to the float reference "
            f"{figures.cosine_mean:.4f} (worst {figures.cosine_min:.4f})"
        )
    if opened.has_documents_graph and found.documents is not None:
        more = sum(manifest.files[name].size for name in (DOCUMENTS_GRAPH, DOCUMENTS_WEIGHTS))
        click.echo(
            f"documents    {more / 1e6:,.0f} MB more, a graph in onnx that reads them, cosine "
            f"{found.documents.cosine_mean:.4f} (worst {found.documents.cosine_min:.4f})"
        )
    if opened.has_cuda_graph:
        click.echo("onnx, cuda   a graph over the same weights, which no gate has run")
