"""`t1-edge export`: a checkpoint to a build."""

import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from t1_edge.cli import options
from t1_edge.cli.output import check_place, put_json
from t1_edge_export.cli.talk import bars_in_bytes, timed_say

if TYPE_CHECKING:
    from t1_edge_export.containers import BlockSize
    from t1_edge_export.plan import Plan
    from t1_edge_export.timing import StageSeconds


_NATIVE_BITS = 5.0
"""Half a bit more than portable's: where a byte more was worth most (docs/export.md)."""


def _formats(ctx: click.Context, param: click.Parameter, text: str) -> tuple[Any, ...]:
    formats = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [format for format in formats if format not in ("onnx", "gguf")]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is none of onnx, gguf")
    return formats


def _bytes(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip(), re.IGNORECASE)
    if not found:
        raise click.BadParameter(f"{text!r} is no size: say 900MB, or 2.5GB")
    powers = {"": 0, "K": 1, "M": 2, "G": 3}
    return int(Decimal(found[1]) * 1000 ** powers[found[2].upper()])


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
    "--cuda",
    is_flag=True,
    help="Write a second ONNX graph, for CUDA, over the same weights; nothing runs it here.",
)
@click.option(
    "--documents",
    is_flag=True,
    help="Write a second ONNX graph, over the checkpoint's weights in 8 bits, that reads documents "
    "faster, and nearer to the float weights; a byte more for each weight.",
)
@click.option(
    "--profile",
    type=click.Choice(["portable", "native", "float"]),
    default="portable",
    show_default=True,
    help="The same int4 weights for every engine, the best that one format's engine reads, or "
    "float32.",
)
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    help="Folder of a LoRA adapter, as PEFT writes it, to merge on the way.",
)
@click.option(
    "--calibration",
    metavar="default|FILE|none",
    help="Texts that ship, texts (.jsonl) or an importance matrix (.gguf) to fit the rounding to."
    "  [default: default; none where nothing is fitted]",
)
@click.option(
    "--save-statistics",
    type=click.Path(path_type=Path),
    help="Write what was collected over texts, as an importance matrix (.gguf).",
)
@click.option(
    "--quantizer",
    type=click.Choice(["search", "gptq", "rtn"]),
    help="Best scale of each block, GPTQ over calibration texts, or plain rounding.  [default: "
    "search; gptq for native ONNX]",
)
@click.option(
    "--bits",
    type=float,
    help="Bits of a weight of the linear layers, on average, between all at 4 and all at 8 (4.5 "
    "and 8.5 in blocks of 32): those that lose most to 4 get 8.  [default: all at 4; 5 for native "
    "ONNX]",
)
@click.option(
    "--block-size",
    type=click.Choice(["32", "64", "128"]),
    default="32",
    show_default=True,
    help="Weights that share a scale. More are smaller and faster in ONNX Runtime, and further "
    "from the float weights; a GGUF gains nothing by them.",
)
@click.option(
    "--target-size",
    callback=_bytes,
    metavar="SIZE",
    help="What the larger format may take, as 900MB or 2.5GB, in place of --bits.",
)
@click.option(
    "--contract",
    metavar="PRESET|FILE",
    help="A preset (chat, nano, mre-t1), or a file (.toml, .json, a t1.json).  [default: the "
    "contract.toml or t1.json beside the checkpoint, else chat]",
)
@click.option("--force", is_flag=True, help="Replace a build that stands there.")
@click.option("--resume", is_flag=True, help="Go on where an export that was interrupted stood.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what would be written, and what it takes, or why not; write nothing.",
)
@click.option(
    "--ignore-engine-memory",
    is_flag=True,
    help="Begin though the engines that verify seem not to fit; with swap they may.",
)
@click.option("--allow-drift", is_flag=True, help="Publish a build that misses its bounds.")
@options.as_json
def export(
    checkpoint: str,
    output: Path | None,
    name: str | None,
    formats: tuple[Any, ...],
    cuda: bool,
    documents: bool,
    profile: Any,
    adapter: Path | None,
    calibration: str | None,
    save_statistics: Path | None,
    quantizer: Any,
    bits: float | None,
    block_size: str,
    target_size: int | None,
    contract: str | None,
    force: bool,
    resume: bool,
    dry_run: bool,
    ignore_engine_memory: bool,
    allow_drift: bool,
    as_json: bool,
) -> None:
    """Turn CHECKPOINT into a verified build.

    CHECKPOINT is the name of one that `t1-edge pull` brought, a Hugging Face folder, a GGUF, or
    hf:owner/name[@revision] on the Hugging Face hub, whose own settings hold (HF_HOME, HF_TOKEN,
    HF_HUB_OFFLINE).
    """
    import msgspec

    from t1_edge.cache import build_dir
    from t1_edge_export.adapter import with_adapter
    from t1_edge_export.contracts import contract_beside, find_contract
    from t1_edge_export.formats import check_profile
    from t1_edge_export.pipeline import export as write
    from t1_edge_export.plan import check_room, make_plan
    from t1_edge_export.precision import Budget
    from t1_edge_export.quantize.calibration import read_calibration
    from t1_edge_export.request import Request, check_request
    from t1_edge_export.sources import find_source
    from t1_edge_export.timing import probe_seconds
    from t1_edge_export.vocabulary import with_tokens

    if bits is not None and target_size is not None:
        raise click.UsageError("--bits and --target-size exclude each other")
    check_place(save_statistics)
    if profile == "native" and formats == ("onnx",):
        quantizer = quantizer or "gptq"
        bits = _NATIVE_BITS if bits is None and target_size is None else bits
    asked = bits is not None or target_size is not None
    budget = Budget(bits=bits, size=target_size) if asked else None
    kind: Any = quantizer or "search"
    size = cast("BlockSize", int(block_size))
    check_profile(  # before gigabytes are fetched, as the contract
        profile,
        formats,
        budget=asked,
        chosen=calibration not in (None, "none") or kind != "search",
        packs=kind == "search",
        cuda=cuda,
        documents=documents,
        block_size=size,
    )
    if profile == "float":
        calibration = "none"
    named = find_contract(contract) if contract else None
    talk = timed_say()
    # Nothing of gigabytes is fetched, either, where no contract could be taken.
    source = find_source(
        checkpoint, talk, look=lambda folder, id: named or contract_beside(folder, id)
    )
    name = name or source.name
    opened = source.open()
    found = named or contract_beside(source.path, opened.origin.id, talk)
    # Before the adapter, which may train the new rows; and the bar counts them.
    opened = with_tokens(opened, found)
    if adapter:
        opened = with_adapter(opened, adapter, name=source.name, say=talk)
    request = Request(
        name=name,
        destination=output or build_dir(name),
        contract=found,
        formats=formats,
        cuda=cuda,
        documents=documents,
        profile=profile,
        calibration=read_calibration(kind, calibration, opened, found, save=save_statistics),
        budget=budget,
        block_size=size,
        force=force,
        resume=resume,
        ignore_engine_memory=ignore_engine_memory,
        allow_drift=allow_drift,
    )
    bars = bars_in_bytes(opened)
    if dry_run:
        check_request(opened, request, bars=bars)
        plan = make_plan(opened, request)
        if not as_json:
            _show(plan)
        # Before a block of it is in memory.
        check_room(plan, resumed=resume, ignore_engine_memory=ignore_engine_memory)
        seconds = probe_seconds(opened, request)
        if as_json:
            put_json(msgspec.to_builtins(plan) | {"seconds": msgspec.to_builtins(seconds)})
        else:
            _show_seconds(seconds, gptq=kind == "gptq")
        return
    build = write(opened, request, say=talk, bars=bars)
    if as_json:
        sizes = {format: build.size(format) for format in build.manifest.formats}
        put_json({"path": str(build.path), "fingerprint": build.manifest.fingerprint} | sizes)
        return
    click.echo(str(build.path))


def _show(plan: "Plan") -> None:
    from t1_edge_export.room import in_gigabytes

    click.echo(f"to {plan.destination}")
    for part in plan.tensors:
        counts = f"{part.count:>5} tensors {part.weights:>15,} weights"
        click.echo(f"{part.encoding:<12}{counts} of {part.bits:g} bits")
    if plan.within_budget:
        click.echo(
            "which linear layers get 8 bits is measured while it exports: these are of another "
            "choice, of about the same size"
        )
    for name, size in plan.files.items():
        click.echo(f"{name:<20}{in_gigabytes(size):>10}")
    click.echo(f"disk: {in_gigabytes(plan.disk)} of {in_gigabytes(plan.free_disk)} that are free")
    verifying = (f"{in_gigabytes(size)} for {f}" for f, size in plan.engine_memory.items())
    click.echo(
        f"memory: {in_gigabytes(plan.memory)} to write, then about {' and '.join(verifying)} to "
        f"verify, one after the other; {in_gigabytes(plan.free_memory)} are free"
    )


def _show_seconds(seconds: "StageSeconds", *, gptq: bool) -> None:
    texts = f"{seconds.calibrating:.0f} s for calibration texts, " if seconds.calibrating else ""
    unknown = "GPTQ's arithmetic comes on top, and " if gptq else ""
    click.echo(
        f"time: about {texts}{seconds.writing:.0f} s to write, {seconds.reference:.0f} s for the "
        f"float reference; {unknown}what engines take to verify comes on top"
    )
