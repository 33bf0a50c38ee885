"""What each stage of an export takes: seconds, and memory that is resident at once.

    python -m peers.stages CHECKPOINT --work DIR [-- EXPORT OPTIONS]

The export runs by the command, in a process of its own, and says when each stage begins.
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
from pathlib import Path
from typing import Final

import click

from peers.process_tree import Taken, run
from t1_edge_bench.table import table

_BEGINNING: Final = re.compile(rb"^(.*) \(at \d+ s\)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage took.

    Attributes:
        what: As the export said when it began.
        seconds: Until the next was seen to begin.
        peak_resident: Most bytes that its processes had resident together; of a stage that was over
            before anybody looked, what the last look before it found.
    """

    what: str
    seconds: float
    peak_resident: int


def stages(log: bytes, taken: Taken) -> list[Stage]:
    """Divide what an export took among what it said.

    Args:
        log: Its talk.
        taken: All of it.
    """
    begun = [("beginning", 0), *((m[1].decode(), m.end()) for m in _BEGINNING.finditer(log))]
    ends = [said for _, said in begun[1:]]
    found = []
    start, resident = 0.0, 0
    for (what, said), following in zip(begun, [*ends, len(log) + 1], strict=True):
        looks = [look for look in taken.looks if said <= look.said < following]
        after = [look.at for look in taken.looks if look.said >= following]
        stop = after[0] if after else taken.seconds
        peak = max((look.resident for look in looks), default=resident)
        found.append(Stage(what=what, seconds=stop - start, peak_resident=peak))
        start, resident = stop, looks[-1].resident if looks else resident
    return found


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
    command.append("--ignore-engine-memory")  # the stages before are measured all the same
    try:
        taken = run([*command, "--output", str(out), *options], log=log)
    finally:
        shutil.rmtree(out.parent, ignore_errors=True)
    found = stages(log.read_bytes(), taken)
    for stage in found:
        click.echo(json.dumps(asdict(stage)))
    cells = [[s.what, f"{s.seconds:.1f}", f"{s.peak_resident / 1e9:.2f}"] for s in found]
    click.echo(table(["stage", "s", "peak resident, GB"], cells))
    if taken.returncode:
        raise click.ClickException(f"the export ended with code {taken.returncode}: see {log}")


if __name__ == "__main__":
    main()
