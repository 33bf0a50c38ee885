"""`t1-edge doctor`: what runs here, and what stands in the way of the rest."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from t1_edge.cli import options
from t1_edge.cli.output import put_json, say

if TYPE_CHECKING:
    from t1_edge.doctor import Report


@click.command()
@options.build_argument
@options.budget
@options.as_json
@click.pass_context
def doctor(ctx: click.Context, build: str, budget: int | None, as_json: bool) -> None:
    """Say what this machine can run, found by running it.

    A tiny build is run by every engine on every device; what "auto" takes for BUILD is measured
    anew, with thoughts within the budget, and every file of the builds in the cache is read. Exit
    code 1 if nothing runs, one of those is damaged, or a BUILD that was named is not there, or has
    nothing that runs here.
    """
    import msgspec

    from t1_edge.doctor import examine

    say("running a tiny build on every engine and device, and reading the cache's builds")
    report = examine(build, budget=budget)
    if as_json:
        put_json(msgspec.to_builtins(report))
    else:
        for line in _lines(report):
            click.echo(line)
    named = ctx.get_parameter_source("build") is not ParameterSource.DEFAULT
    if not report.healthy or (named and not report.chosen.format):
        raise click.exceptions.Exit(1)


def _lines(report: "Report") -> Iterator[str]:
    yield "  ".join(f"{what} {version}" for what, version in report.versions.items())
    machine = report.processor
    yield (
        f"processor  {machine.name}, {machine.architecture}, {machine.threads} threads for engines "
        f"of {machine.logical} ({' '.join(machine.features)})"
    )
    yield (
        f"memory     {report.total_memory / 2**30:.1f} GiB, {report.free_memory / 2**30:.1f} free; "
        f"read at {report.read_bandwidth / 1e9:.1f} GB/s"
    )
    yield f"nvidia     {report.nvidia}"
    for engine in report.engines:
        packages = " and ".join(engine.packages) or "no package is installed"
        backends = f": compiled for {', '.join(engine.backends)}" if engine.backends else ""
        devices = f"; finds {', '.join(engine.devices)}" if engine.devices else ""
        yield f"{engine.format:<11}{packages}{backends}{devices}"
    for probe in report.probes:
        where = f"{probe.format:<5}{probe.device:<5} "
        if probe.ran:
            yield f"{where}runs   {probe.library}, a tiny build in {probe.seconds:.2f} s"
        else:
            yield f"{where}no     {probe.reason}"
    yield from _choice(report)
    trouble = f": cannot be written, so that nothing new is kept: {report.cache_obstacle}"
    yield f"cache      {report.cache}{trouble if report.cache_obstacle else ''}"
    for build in report.builds:
        state = build.problem or "every hash is right (t1-edge verify runs it)"
        yield f"build      {build.name}, {build.size / 1e6:,.0f} MB: {state}"


def _choice(report: "Report") -> Iterator[str]:
    chosen = report.chosen
    if chosen.format:
        yield f"auto       {chosen.format} on {chosen.device} for {chosen.build}: {chosen.reason}"
        if chosen.documents == "documents":
            yield "           onnx on cpu for its documents: they have a graph of their own"
    else:
        yield f"auto       nothing for {chosen.build}: {chosen.reason}"
