"""Retrieval data sets: BEIR-shaped folders.

corpus.jsonl[.gz]            {"_id", "text", "title"?}
queries[.SPLIT].jsonl[.gz]   {"_id", "text"}
qrels[.SPLIT].tsv            query-id, corpus-id, score, under a header; or qrels/SPLIT.tsv, as BEIR
                             has it, beside one file of queries for all splits
excluded.tsv                 optional: query-id, corpus-id, documents that a query leaves out
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from t1_edge.errors import DataError

_QRELS: Final = ("query-id", "corpus-id", "score")
_SUFFIXES: Final = (".jsonl", ".jsonl.gz")


class _Record(msgspec.Struct, frozen=True):
    id: str = msgspec.field(name="_id")
    text: str
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A query or a document."""

    id: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Documents, queries that have judgements, and the judgements.

    Attributes:
        name: Of a folder, its own.
        split: Which part of it; "" if a folder has only one set of queries.
        documents: In the order of their file; a title stands before its text.
        queries: In the order of their file; those without a judgement are left out.
        qrels: Query id to document id, or topic, to gain, gains above 0.
        excluded: Query id to documents that it leaves out.
        unjudged: How many queries were left out.
        topics: Document id to its topic, where topics are judged; empty where documents are.
    """

    name: str
    split: str
    documents: Sequence[Text]
    queries: Sequence[Text]
    qrels: Mapping[str, Mapping[str, int]]
    excluded: Mapping[str, frozenset[str]]
    unjudged: int
    topics: Mapping[str, str] = field(default_factory=dict)

    def digest(self) -> str:
        """Hash of the documents' texts in their order, 16 hex digits."""
        found = hashlib.sha256()
        for document in self.documents:
            found.update(document.text.encode("utf-8", errors="surrogatepass") + b"\0")
        return found.hexdigest()[:16]


def load(folder: Path, *, split: str | None = None, limit_queries: int | None = None) -> Dataset:
    """Read a folder.

    Args:
        folder: The folder.
        split: Which queries; may be left out where there is only one set.
        limit_queries: Keep the first so many judged queries.

    Raises:
        DataError: If a file is missing or a line is not what it must be, naming both.
    """
    splits = _splits(folder)
    chosen = _choose_split(folder, splits, split)
    dot = f".{chosen}" if chosen else ""
    documents = _texts(_find(folder, "corpus"))
    known = {document.id for document in documents}
    qrels = _judgements(splits[chosen], known)
    asked = _texts(_find(folder, f"queries{dot}", "queries"))
    queries = [query for query in asked if query.id in qrels]
    if not queries:
        raise DataError(f"{folder}: none of the {len(asked)} queries has a judgement")
    kept = queries[:limit_queries]
    excluded = folder / "excluded.tsv"
    return Dataset(
        name=folder.resolve().name,
        split=chosen,
        documents=documents,
        queries=kept,
        qrels={query.id: qrels[query.id] for query in kept},
        excluded=_exclusions(excluded) if excluded.is_file() else {},
        unjudged=len(asked) - len(queries),
    )


def _choose_split(folder: Path, splits: Iterable[str], split: str | None) -> str:
    found = sorted(splits)
    if split is None and len(found) == 1:
        return found[0]
    if split in found:
        return str(split)
    if not found:
        raise DataError(
            f"{folder} has no qrels.tsv, qrels.SPLIT.tsv or qrels/SPLIT.tsv: nothing is judged"
        )
    if found == [""]:
        raise DataError(f"{folder} has no splits: leave --split out")
    listed = ", ".join(name or "(none)" for name in found)
    asked = "name one with --split" if split is None else f"there is no {split!r}"
    raise DataError(f"{folder} has these splits: {listed}; {asked}")


def _splits(folder: Path) -> dict[str, Path]:
    """Files of judgements by split; "" for those of the only one."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder with a corpus.jsonl, queries and qrels")
    flat = {path.name[len("qrels") : -len(".tsv")][1:]: path for path in folder.glob("qrels*.tsv")}
    return {path.stem: path for path in folder.glob("qrels/*.tsv")} | flat


def _find(folder: Path, *stems: str) -> Path:
    """The first file there is of the stems' names."""
    for stem in stems:
        for suffix in _SUFFIXES:
            if (folder / (stem + suffix)).is_file():
                return folder / (stem + suffix)
    raise DataError(f"{folder} has neither {stems[0]}.jsonl nor {stems[0]}.jsonl.gz")


def _texts(path: Path) -> list[Text]:
    """The texts of a file; a title stands before its text. A repeated record counts once."""
    found: dict[str, Text] = {}
    for number, line in enumerate(_lines(path), 1):
        try:
            record = msgspec.json.decode(line, type=_Record)
        except (msgspec.MsgspecError, UnicodeDecodeError) as e:
            raise DataError(f'{path}:{number}: expected {{"_id": "…", "text": "…"}}: {e}') from e
        text = Text(
            id=record.id, text=f"{record.title}\n{record.text}" if record.title else record.text
        )
        if found.setdefault(record.id, text) != text:
            raise DataError(f"{path}:{number}: the id {record.id!r} had another text before")
    return list(found.values())


def _lines(path: Path) -> Iterator[str]:
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8") as file:
                yield from file
        else:
            with path.open(encoding="utf-8") as file:
                yield from file
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as e:
        raise DataError(f"cannot read {path}: {e}") from e


def _rows(path: Path, header: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Lines of a tab-separated file under its header, with their numbers."""
    for number, line in enumerate(_lines(path), 1):
        cells = line.rstrip("\r\n").split("\t")
        if number == 1 and cells != list(header):
            raise DataError(f"{path}:1: expected the header {' '.join(header)}, found {line!r}")
        if len(cells) != len(header):
            wanted = len(header)
            raise DataError(f"{path}:{number}: expected {wanted} columns, found {len(cells)}")
        if number > 1:
            yield number, cells


def _judgements(path: Path, known: set[str]) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for number, (query, document, score) in _rows(path, _QRELS):
        if document not in known:
            raise DataError(f"{path}:{number}: the corpus has no document {document!r}")
        try:
            gain = int(score)
        except ValueError as e:
            raise DataError(f"{path}:{number}: the score {score!r} is no whole number") from e
        if gain > 0:
            qrels.setdefault(query, {})[document] = gain
    return qrels


def _exclusions(path: Path) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for _, (query, document) in _rows(path, _QRELS[:2]):
        found.setdefault(query, set()).add(document)
    return {query: frozenset(documents) for query, documents in found.items()}
