"""Options that several commands share."""

from typing import Final

import click

DEFAULT_BUILD: Final = "nano"
"""The model that comes with t1-edge."""

build = click.option(
    "--build",
    "build",
    default=DEFAULT_BUILD,
    show_default=True,
    metavar="NAME|DIR",
    help="A build's directory, or its name in the cache.",
)
build_argument = click.argument("build", default=DEFAULT_BUILD)
engine = click.option(
    "--engine",
    type=click.Choice(["auto", "onnx", "gguf"]),
    default="auto",
    show_default=True,
    help="Which of the build's formats to run.",
)
device = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "metal", "webgpu"]),
    default="auto",
    show_default=True,
    help="Where to run it; a device that cannot run is an error. auto: CUDA, Metal or CPU, the "
    "first that runs.",
)
threads = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="CPU threads.  [default: OMP_NUM_THREADS, or one a core]",
)
document_graph = click.option(
    "--document-graph",
    type=click.Choice(["auto", "documents", "everything"]),
    default="auto",
    show_default=True,
    help="Which graph reads documents: the one for documents, which a build may have, or the "
    "engine's for everything. auto: the former where it runs.",
)
batch_size = click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    metavar="TEXTS",
    help="Most texts that run together, where memory is scarce.  [default: as many as run well]",
)
budget = click.option(
    "--budget",
    type=click.IntRange(min=0),
    metavar="TOKENS",
    help="Most tokens of a query's thought.  [default: what the build says; t1-edge info]",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Put data alone on stdout, as JSON.")
