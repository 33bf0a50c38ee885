"""`t1-edge export`: a checkpoint to a build."""

from pathlib import Path
from typing import Any

import click

from t1_edge.cli import options
from t1_edge.cli.output import progress, put_json, say


def _formats(ctx: click.Context, param: click.Parameter, text: str) -> tuple[Any, ...]:
    formats = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [format for format in formats if format not in ("onnx", "gguf")]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is none of onnx, gguf")
    return formats


@click.command()
@click.argument("checkpoint")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Directory to write.  [default: the cache]"
)
@click.option("--name", help="Name of the build.  [default: the checkpoint's]")
@click.option(
    "--format",
    "formats",
    callback=_formats,
    default="onnx,gguf",
    show_default=True,
    help="Engines to write for.",
)
@click.option(
    "--profile",
    type=click.Choice(["portable", "float"]),
    default="portable",
    show_default=True,
    help="Q4_0 body and Q8_0 embedding, or float32.",
)
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    help="Folder of a LoRA adapter, as PEFT writes it, to merge on the way.",
)
@click.option(
    "--calibration",
    default="none",
    show_default=True,
    help="Importance matrix (.gguf) or texts (.jsonl) that the rounding is fitted to, or none.",
)
@click.option(
    "--quantizer",
    type=click.Choice(["search", "gptq"]),
    default="search",
    show_default=True,
    help="Best scale of each block, or GPTQ over calibration texts.",
)
@click.option("--contract", default="chat", show_default=True, help="A preset, or a JSON file.")
@click.option("--force", is_flag=True, help="Replace a build that stands there.")
@click.option("--allow-drift", is_flag=True, help="Publish a build that misses its bounds.")
@options.as_json
def export(
    checkpoint: str,
    output: Path | None,
    name: str | None,
    formats: tuple[Any, ...],
    profile: Any,
    adapter: Path | None,
    calibration: str,
    quantizer: str,
    contract: str,
    force: bool,
    allow_drift: bool,
    as_json: bool,
) -> None:
    """Turn CHECKPOINT into a verified build.

    CHECKPOINT is the name of one that `t1-edge pull` brought, a Hugging Face folder, or a GGUF.
    """
    from t1_edge.cache import build_dir
    from t1_edge_export.adapter import with_adapter
    from t1_edge_export.checkpoint import find_checkpoint, open_checkpoint
    from t1_edge_export.pipeline import Request, weight_count
    from t1_edge_export.pipeline import export as write
    from t1_edge_export.presets import find_contract
    from t1_edge_export.quantize.calibration import find_quantizer
    from t1_edge_export.vocabulary import with_tokens

    path = find_checkpoint(checkpoint)
    name = name or Path(checkpoint).stem
    found = find_contract(contract)
    # Before the adapter, which may train the new rows; and the bar counts them.
    opened = with_tokens(open_checkpoint(path), found.added_tokens)
    if adapter:
        opened = with_adapter(opened, adapter)
    request = Request(
        name=name,
        destination=output or build_dir(name),
        contract=found,
        formats=formats,
        profile=profile,
        quantizer=find_quantizer(quantizer, calibration, opened, found),
        force=force,
        allow_drift=allow_drift,
    )
    with progress(weight_count(opened.decoder), "quantizing") as update:
        build = write(opened, request, say=say, progress=update)
    if as_json:
        sizes = {format: build.size(format) for format in build.manifest.formats}
        put_json({"path": str(build.path), "fingerprint": build.manifest.fingerprint} | sizes)
        return
    click.echo(str(build.path))
