"""What `peers.speed` and its workers say to one another: files and lines of JSON.

A worker may run in a peer's environment, so nothing here needs more than Python.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Final, Literal, TypeVar

Work = Literal["passages", "facts", "query", "queries"]
"""Passages or facts to embed; a query alone; eight queries at once."""

Action = Literal["prepare", "run"]

TOGETHER: Final = 8
"""Queries that come at once."""

_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts, and the same as rows of token ids.

    Attributes:
        texts: As t1-edge takes them.
        rows: As everybody else does: of a document whole, `<emb_token>` included; of a query up to
            where its thought begins.
    """

    texts: Sequence[str]
    rows: Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """All that there is to do.

    Attributes:
        budget: Tokens of every thought, no fewer.
        ending: Tokens behind a thought; the vector is read at the last.
        passages: Documents of many sentences.
        facts: Documents of one sentence.
        queries: What is thought about.
    """

    budget: int
    ending: Sequence[int]
    passages: Texts
    facts: Texts
    queries: Texts

    def of(self, work: Work) -> Texts:
        """The texts that a work is about."""
        return {"passages": self.passages, "facts": self.facts}.get(work, self.queries)

    def save(self, path: Path) -> None:
        """Write a file that `load` reads."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Tasks":
        """Read what `save` wrote."""
        raw = json.loads(path.read_text(encoding="utf-8"))
        names = ("passages", "facts", "queries")
        return cls(**{**raw, **{name: Texts(**raw[name]) for name in names}})


@dataclass(frozen=True, kw_only=True)
class Command:
    """What a worker is told.

    Attributes:
        action: Find the best settings for a work, untimed; or run a share of it.
        work: Which.
        share: Its number of `shares`: every so manieth item, from this one on.
        shares: How many there are.
        vectors: Where the share's vectors go, as an .npy of float32 [n, d]; "" for nowhere.
    """

    action: Action
    work: Work
    share: int = 0
    shares: int = 1
    vectors: str = ""

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def parse(cls, line: str) -> "Command":
        """Read what `line` gave."""
        return cls(**json.loads(line))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a worker says.

    Attributes:
        seconds: Of each group of a share; see `groups`.
        settings: What it runs with, in words.
    """

    seconds: Sequence[float] = ()
    settings: str = ""

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def parse(cls, line: str) -> "Answer":
        """Read what `line` gave."""
        return cls(**json.loads(line))


def groups(work: Work, items: Sequence[_Item], share: int, shares: int) -> list[list[_Item]]:
    """A share of a work as what comes at once, and is timed together.

    Args:
        work: Documents come all at once, a query alone, queries in whole eights: what is left over
            is left out, and fewer than eight are taken again.
        items: Of all shares.
        share: Which of them, from 0.
        shares: How many there are.
    """
    own = list(items[share::shares])
    if work == "query":
        return [[item] for item in own]
    if work == "queries":
        whole = list(islice(cycle(own), max(TOGETHER, len(own) - len(own) % TOGETHER)))
        return list(_cut(whole, TOGETHER))
    return [own]


def _cut(items: list[_Item], size: int) -> Iterator[list[_Item]]:
    return (items[at : at + size] for at in range(0, len(items), size))
