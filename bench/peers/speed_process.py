"""Processes of `peers.speed`: contestants that stay, and fresh ones, timed from their start."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from peers.exporters import Peer, install
from peers.speed_wire import Answer, Command

_BENCH: Final = Path(__file__).parents[1]

_SECONDS_TO_END: Final = 10

_FIRST: Final = """
import sys
from t1_edge import Encoder
build, engine, threads, text = sys.argv[1:]
with Encoder.load(build, engine=engine, threads=int(threads), cache=False) as encoder:
    encoder.encode_query(text)
    print("vector", flush=True)
"""


class Worker:
    """A contestant in a process of its own, which has what it needs in memory. A context manager.

    Args:
        module: Of this folder, run with the arguments.
        arguments: Given to it.
        peer: In whose environment it runs; in this one if None.
        work: Where the environments are.
        log: Where it talks.
    """

    def __init__(
        self, module: str, arguments: Sequence[str], *, peer: Peer | None, work: Path, log: Path
    ) -> None:
        python = install(peer, work)["python"] if peer else sys.executable
        inherited = os.environ.get("PYTHONPATH", "") if peer is None else ""
        path = os.pathsep.join(filter(None, (str(_BENCH), inherited)))
        self._module, self._log = module, log
        with log.open("wb") as talk:
            self._process = subprocess.Popen(
                [python, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=talk,
                env={**os.environ, "PYTHONPATH": path},
                text=True,
                encoding="utf-8",
            )

    def ask(self, command: Command) -> Answer:
        """Have it do something, and wait.

        Raises:
            click.ClickException: If it ends instead; its log stays.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(command.line())
            self._process.stdin.flush()
        except BrokenPipeError:
            line = ""
        else:
            line = self._process.stdout.readline()
        if not line:
            raise click.ClickException(f"{self._module} ended: see {self._log}")
        return Answer.parse(line)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._process.communicate(timeout=_SECONDS_TO_END)
        except subprocess.TimeoutExpired:  # whoever measures was interrupted
            self._process.kill()
            self._process.communicate()


def seconds_to_first_vector(build: Path, engine: str, threads: int, text: str) -> float:
    """From the start of a process to its first vector, by a query without a thought.

    Args:
        build: Whose files are in the disk's cache if they were read before.
        engine: Which of its formats.
        threads: CPU threads.
        text: The query.

    Raises:
        click.ClickException: If there is no vector.
    """
    command = [sys.executable, "-c", _FIRST, str(build), engine, str(threads), text]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - began
    if line != "vector\n":
        raise click.ClickException(f"{engine} of {build} gave no vector")
    return seconds
