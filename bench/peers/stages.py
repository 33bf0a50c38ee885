"""What each stage of an export takes: seconds, and memory that is resident at once.

    python -m peers.stages CHECKPOINT --work DIR [-- EXPORT OPTIONS]

The export runs by the command, in a process of its own, and says at what second each stage began.
It is measured to its end, whether that is a build or a refusal: in a memory control group that the
engines which verify do not fit into, the stages before them are measured all the same. What it
wrote is removed. A JSON line for each stage, and a table.
"""

import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import click

from peers.process_tree import Taken, run
from t1_edge_bench.table import table

_BEGINNING: Final = re.compile(r"(.*) \(at (\d+) s\)")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage took.

    Attributes:
        what: As the export said when it began.
        seconds: Until the next began, to the second.
        peak_resident: Most bytes that its processes had resident together.
    """

    what: str
    seconds: float
    peak_resident: int


def stages(log: str, taken: Taken) -> list[Stage]:
    """Divide what an export took among what it said.

    Args:
        log: Its talk.
        taken: All of it.
    """
    found = [said for line in log.splitlines() if (said := _BEGINNING.fullmatch(line))]
    begun = [("beginning", 0.0), *((said[1], float(said[2])) for said in found)]
    return [
        Stage(what=what, seconds=stop - start, peak_resident=taken.peak(start, stop))
        for (what, start), (_, stop) in pairwise([*begun, ("", taken.seconds)])
    ]


@click.command()
@click.argument("checkpoint")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.option("--work", type=click.Path(path_type=Path), required=True)
def main(checkpoint: str, options: Sequence[str], work: Path) -> None:
    """Export CHECKPOINT with OPTIONS, and measure its stages."""
    work.mkdir(parents=True, exist_ok=True)
    out, log = work / "staged" / "build", work / "stages.log"
    log.unlink(missing_ok=True)
    command = [sys.executable, "-c", "from t1_edge.cli import main; main()", "export", checkpoint]
    try:
        taken = run([*command, "--output", str(out), *options], log=log)
    finally:
        shutil.rmtree(out.parent, ignore_errors=True)
    found = stages(log.read_text(encoding="utf-8"), taken)
    for stage in found:
        click.echo(json.dumps(asdict(stage)))
    cells = [[s.what, f"{s.seconds:.0f}", f"{s.peak_resident / 1e9:.2f}"] for s in found]
    click.echo(table(["stage", "s", "peak resident, GB"], cells))
    if taken.returncode:
        raise click.ClickException(f"the export ended with code {taken.returncode}: see {log}")


if __name__ == "__main__":
    main()
