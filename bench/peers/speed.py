"""How fast the same weights become vectors: t1-edge, llama-cpp-python, onnxruntime-genai's graph.

    python -m peers.speed --work DIR [--rounds 5] [--works passages] [--only llama]

All run in one command, interleaved: in each round everybody does a share of each work, one after
another and in another order each time, in processes that stay; their settings were looked for
before. The same for all are nano's weights, the tokens (peers are given ids), and the length of
every thought (peers.speed_files says how). t1-edge is measured through its encoder, cutting text
into tokens included. Vectors are compared with the float reference's, so that nobody is fast at
something else. DIR/speed.jsonl keeps every sample; tables come at the end.
"""

import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from peers.exporters import install, versions
from peers.speed_contestants import WORKS, Contestant, contestants
from peers.speed_files import Files, make
from peers.speed_process import Worker, seconds_to_first_vector
from peers.speed_report import Measured, Near, Sample, comparison, figures
from peers.speed_texts import facts, passages, queries, read, tasks
from peers.speed_wire import Command, Tasks, Work, groups
from t1_edge.bandwidth import read_bandwidth
from t1_edge.build import TOKENIZER
from t1_edge.contract import Codec
from t1_edge.encoder import Encoder
from t1_edge.engines.base import Float32Array
from t1_edge.machine import available_threads, processor
from t1_edge.tokenization import TextTokenizer
from t1_edge.vectors import cosines
from t1_edge_export.reference_engine import ReferenceEngine

_COMPARED: Final = 16
"""Vectors of a work that are compared with the float reference's."""

_MEASURED: Final[tuple[Measured, ...]] = (*WORKS, "start")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One comparison.

    Attributes:
        work: Where environments are; below it go logs and vectors.
        tasks: All that there is to do.
        everybody: Who takes part.
        works: At what.
        rounds: How many shares each work is cut into.
        threads: CPU threads.
        keep: Takes what was measured, and what it is.
    """

    work: Path
    tasks: Tasks
    everybody: Sequence[Contestant]
    works: Sequence[Measured]
    rounds: int
    threads: int
    keep: Callable[[str, Mapping[str, Any]], None]

    def measure(self) -> list[Sample]:
        """Start everybody, have them find their settings, and go through all rounds."""
        file = self.work / "speed" / "tasks.json"
        self.tasks.save(file)
        with ExitStack() as stack:
            workers = {
                one.name: stack.enter_context(one.start(file, self.threads, self.work))
                for one in self.everybody
            }
            for one, work in self._entries(self.everybody):
                settings = workers[one.name].ask(Command(action="prepare", work=work)).settings
                self.keep("settings", {"contestant": one.name, "work": work, "found": settings})
            samples = []
            for sample in self._samples(workers):
                self.keep("sample", asdict(sample))
                samples.append(sample)
        return samples

    def near(self, files: Files) -> list[Near]:
        """Compare the first round's vectors with the float reference's."""
        found = []
        codec = Codec(files.build.manifest.contract, _tokenizer(files))
        hidden = files.checkpoint.decoder.hidden
        engine = ReferenceEngine(files.checkpoint)
        with Encoder(codec, engine, fingerprint="", hidden=hidden) as encoder:
            true = {work: self._reference(encoder, work) for work in WORKS if work in self.works}
        for one, work in self._entries(self.everybody):
            own = np.load(self._vectors(one, work))[: len(true[work])]
            apart = cosines(own, true[work])
            mean, least = float(apart.mean()), float(apart.min())
            found.append(Near(contestant=one.name, work=work, mean=mean, least=least))
            self.keep("near", asdict(found[-1]))
        return found

    def _samples(self, workers: Mapping[str, Worker]) -> Iterator[Sample]:
        for at in range(self.rounds):
            turn = at % len(self.everybody)
            order = [*self.everybody[turn:], *self.everybody[:turn]]
            for work in self.works:
                if work == "start":
                    yield from self._starts(order, at)
            for one, work in self._entries(order):
                yield self._sample(one, work, at, workers[one.name])

    def _entries(self, order: Sequence[Contestant]) -> Iterator[tuple[Contestant, Work]]:
        """Work by work, who does it."""
        for work in WORKS:
            if work in self.works:
                yield from ((one, work) for one in order if work in one.works)

    def _sample(self, one: Contestant, work: Work, at: int, worker: Worker) -> Sample:
        vectors = "" if at else str(self._vectors(one, work))
        command = Command(action="run", work=work, share=at, shares=self.rounds, vectors=vectors)
        answer = worker.ask(command)
        own = chain.from_iterable(groups(work, self.tasks.of(work).rows, at, self.rounds))
        tokens = sum(map(len, own)) if work in ("passages", "facts") else 0
        seconds = answer.seconds
        return Sample(contestant=one.name, work=work, round=at, seconds=seconds, tokens=tokens)

    def _starts(self, order: Sequence[Contestant], at: int) -> Iterator[Sample]:
        """Fresh processes of t1-edge, behind one that has the disk's cache warm."""
        text = self.tasks.queries.texts[0]
        for one in order:
            if one.engine:
                for _ in range(2):
                    taken = seconds_to_first_vector(one.model, one.engine, self.threads, text)
                yield Sample(contestant=one.name, work="start", round=at, seconds=[taken])

    def _reference(self, encoder: Encoder, work: Work) -> Float32Array:
        """The float reference's vectors of the first texts of the first share."""
        shared = groups(work, self.tasks.of(work).texts, 0, self.rounds)
        texts = list(chain.from_iterable(shared))[:_COMPARED]
        if work in ("passages", "facts"):
            return encoder.embed_documents(texts, truncate=True).vectors
        found = encoder.encode_queries(texts, budget=self.tasks.budget)
        return np.stack([one.vector for one in found])

    def _vectors(self, one: Contestant, work: Work) -> Path:
        return self.work / "speed" / f"{one.slug}-{work}.npy"


def _tokenizer(files: Files) -> TextTokenizer:
    return TextTokenizer.from_file(files.build.file(TOKENIZER))


def _machine(everybody: Sequence[Contestant], threads: int, work: Path) -> dict[str, Any]:
    """What ran, and on what."""
    peers = {one.name: one.peer for one in everybody if one.peer}
    installed = {
        name: versions(Path(install(peer, work)["python"])) for name, peer in peers.items()
    }
    return {
        "processor": processor().name,
        "threads": threads,
        "read_bandwidth": read_bandwidth(threads),
        "python": platform.python_version(),
        "versions": installed,
    }


@click.command()
@click.option("--work", type=click.Path(path_type=Path, resolve_path=True), required=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--works", type=click.Choice(_MEASURED), multiple=True, default=_MEASURED)
@click.option("--only", help="Contestants whose names begin so.", multiple=True, default=("",))
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all if left out.")
@click.option("--passages", "given_passages", type=click.Path(path_type=Path, exists=True))
@click.option("--facts", "given_facts", type=click.Path(path_type=Path, exists=True))
@click.option("--passage-count", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--fact-count", type=click.IntRange(min=1), default=5000, show_default=True)
@click.option("--query-count", type=click.IntRange(min=1), default=80, show_default=True)
@click.option("--budget", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--four-bit", is_flag=True, help="None of t1-edge's linear layers has 8 bits.")
def main(
    work: Path,
    rounds: int,
    works: tuple[Measured, ...],
    only: tuple[str, ...],
    threads: int | None,
    given_passages: Path | None,
    given_facts: Path | None,
    passage_count: int,
    fact_count: int,
    query_count: int,
    budget: int,
    four_bit: bool,
) -> None:
    """Compare everybody; a JSON line for each thing measured, and tables."""
    if rounds > min(passage_count, fact_count, query_count):
        raise click.UsageError("every round needs a passage, a fact and a query of its own")
    files = make(work, four_bit=four_bit, say=click.echo)
    codec = Codec(files.build.manifest.contract, _tokenizer(files))
    everybody = [one for one in contestants(files) if one.name.startswith(only)]
    threads = available_threads() if threads is None else threads
    todo = tasks(
        codec,
        budget,
        passages=read(given_passages, passage_count) if given_passages else passages(passage_count),
        facts=read(given_facts, fact_count) if given_facts else facts(fact_count),
        queries=queries(query_count),
    )
    with (work / "speed.jsonl").open("w", encoding="utf-8") as kept:

        def keep(what: str, found: Mapping[str, Any]) -> None:
            line = json.dumps({"what": what, **found})
            kept.write(line + "\n")
            kept.flush()
            click.echo(line)

        keep("machine", _machine(everybody, threads, work))
        run = Run(
            work=work,
            tasks=todo,
            everybody=everybody,
            works=works,
            rounds=rounds,
            threads=threads,
            keep=keep,
        )
        samples = run.measure()
        near = run.near(files)
    click.echo(f"\n{figures(samples, near)}\n\n{comparison(samples, near)}")


if __name__ == "__main__":
    main()
