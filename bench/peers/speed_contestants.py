"""Who takes part in `peers.speed`, and in what."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

from peers.exporters import BUILDER, LLAMA_CPP_ROUTE, Peer
from peers.speed_files import Files
from peers.speed_process import Worker
from peers.speed_report import GRAPH, ORDINARY, OWN, TWO_PHASES
from peers.speed_wire import Work
from t1_edge.build import Format

WORKS: Final[tuple[Work, ...]] = get_args(Work)


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """Somebody who takes part.

    Attributes:
        name: For the table.
        module: What its process runs.
        model: What it opens: a build, a GGUF or a graph.
        works: What it does.
        engine: Which format of a build.
        peer: In whose environment it runs; in this one if None.
    """

    name: str
    module: str
    model: Path
    works: Sequence[Work]
    engine: Format | None = None
    peer: Peer | None = None

    @property
    def slug(self) -> str:
        """Its name, as a file can have it."""
        return re.sub(r"\W+", "-", self.name)

    def start(self, tasks: Path, threads: int, work: Path) -> Worker:
        """Its process.

        Args:
            tasks: The file of all that there is to do; the log goes beside it.
            threads: CPU threads.
            work: Where environments are.
        """
        arguments = [str(self.model), str(tasks), str(threads)]
        if self.engine:
            arguments.append(self.engine)
        log = tasks.parent / f"{self.slug}.log"
        return Worker(self.module, arguments, peer=self.peer, work=work, log=log)


def contestants(files: Files) -> list[Contestant]:
    """Everybody."""
    own = [
        Contestant(
            name=name,
            module="peers.speed_t1_edge",
            model=files.build.path,
            works=WORKS,
            engine=engine,
        )
        for engine, name in OWN.items()
    ]
    ordinary = Contestant(
        name=ORDINARY,
        module="peers.speed_llama",
        model=files.gguf,
        works=("passages", "query", "queries"),
        peer=LLAMA_CPP_ROUTE,
    )
    two_phases = Contestant(
        name=TWO_PHASES,
        module="peers.speed_two_phases",
        model=files.gguf,
        works=("passages", "facts"),
        peer=LLAMA_CPP_ROUTE,
    )
    graph = Contestant(
        name=GRAPH,
        module="peers.speed_graph",
        model=files.graph,
        works=("passages",),
        peer=BUILDER,
    )
    return [*own, ordinary, two_phases, graph]
