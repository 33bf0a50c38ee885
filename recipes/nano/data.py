"""One stream of (query, documents that answer it, rationale) from the training sets.

    python -m recipes.nano.data --train ../shared/data/train --bench ../shared/data/bench --out DIR

Writes documents.jsonl, a text a line, and examples.jsonl, whose positives are line numbers in it.
Train and dev share neither a question nor a document. What occurs in a bench set is left out.
"""

import ast
import gzip
import hashlib
import importlib
import inspect
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import click
import msgspec
import numpy as np
from numpy.typing import NDArray

POSITIVES: Final = "positives.npy"

LONGEST: Final = 1200
"""Characters of a text that are kept; training reads less of it still."""

_DEV_SHARE: Final = 0.03

_CAPS: Final[Mapping[str, int]] = {"medquad": 5000, "tldr": 4000, "gsm8k": 1500, "stdlib": 6000}
_FLAN_CAP: Final = 1500
_CLOZE_CAP: Final = 5000


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A question and what answers it, as a set has them.

    Attributes:
        set: Name of the set.
        query: The question.
        documents: Texts that answer it.
        rationale: How the answer is reached, in words; "" if the set does not say.
        whole: Whether every document answers; otherwise a teacher says which do.
    """

    set: str
    query: str
    documents: Sequence[str]
    rationale: str = ""
    whole: bool = True


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A line of examples.jsonl.

    Attributes:
        set: Name of the set.
        part: "train" or "dev".
        query: The question.
        positives: Lines of documents.jsonl.
        rationale: See `Pair`.
        whole: See `Pair`.
    """

    set: str
    part: Literal["train", "dev"]
    query: str
    positives: tuple[int, ...]
    rationale: str = ""
    whole: bool = True


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """A JSON line for each row; a killed run leaves the file before."""
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    new.replace(path)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON-lines file, gzipped or not."""
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open()
    with opened as file:
        for line in file:
            yield msgspec.json.decode(line)


def pairs(folder: Path, seed: int) -> Iterator[Pair]:
    """Every pair of the training sets, capped so that no set drowns the others."""
    passages = {row["_id"]: row["text"] for row in _rows(folder, "openstax-passages")}
    for name in ("entailment-bank-train", "worldtree-train", "qed-nq", "pubmedqa", "medquad"):
        yield from _capped(name, map(_plain(name), _rows(folder, name)), seed)
    for name in ("tldr", "openstax-glossary"):
        yield from _capped(name, map(_plain(name), _rows(folder, name)), seed)
    for row in _rows(folder, "openstax-questions"):
        found = [passages[at] for at in row["positive_ids"]]
        yield Pair(set="openstax-questions", query=row["query"], documents=found, whole=False)
    yield from _capped("openstax-cloze", _cloze(passages.values()), seed, _CLOZE_CAP)
    for name, rows in _by_set(_rows(folder, "flan-cot")).items():
        if name != "sensemaking":  # every question reads the same there
            yield from _capped(name, map(_rationale(f"flan-{name}"), rows), seed, _FLAN_CAP)
    yield from _capped("stdlib", _stdlib(), seed)


def _rows(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    return read_lines(folder / f"{name}.jsonl.gz")


def _by_set(rows: Iterator[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["set"], []).append(row)
    return found


def _capped(name: str, found: Iterator[Pair], seed: int, cap: int | None = None) -> list[Pair]:
    chosen, most = list(found), cap or _CAPS.get(name)
    if most and len(chosen) > most:
        chosen = random.Random(f"{seed} {name}").sample(chosen, most)
    return chosen


def _plain(name: str) -> Any:
    def make(row: dict[str, Any]) -> Pair:
        documents = row.get("positives") or [row["positive"]]
        return Pair(
            set=name,
            query=row["query"],
            documents=documents,
            rationale=row.get("reasoning", ""),
        )

    return make


def _rationale(name: str) -> Any:
    """A set without documents: its rationale is what a search for the question should find."""

    def make(row: dict[str, Any]) -> Pair:
        query = re.split(r"\nOptions:|\nOPTIONS:", row["query"])[0]
        return Pair(set=name, query=query, documents=[row["reasoning"]])

    return make


def _cloze(passages: Any) -> Iterator[Pair]:
    """A passage's longest sentence, and the passage without it (inverse cloze, 1906.00300)."""
    for text in passages:
        sentences = re.split(r"(?<=[.!?]) (?=[A-Z])", text)
        if len(sentences) >= 4:
            query = max(sentences[1:], key=len)
            rest = " ".join(s for s in sentences if s != query)
            yield Pair(set="openstax-cloze", query=query[:300], documents=[rest])


def _stdlib() -> Iterator[Pair]:
    """What Python's standard library says of its own functions: a summary, and the rest."""
    seen: set[str] = set()
    for name, text in (*_documented_in_python(), *_documented_in_c()):
        summary, _, rest = inspect.cleandoc(text).partition("\n\n")
        if text in seen or len(summary.split()) < 4 or len(rest.split()) < 8:
            continue
        seen.add(text)
        document = f"{name}: {' '.join(rest.split())}"
        yield Pair(set="stdlib", query=" ".join(summary.split()), documents=[document])


def _documented_in_python() -> Iterator[tuple[str, str]]:
    """Names and docstrings, read from the sources without running them."""
    root = Path(inspect.__file__).parent
    skip = {"idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests", "turtledemo"}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if skip.isdisjoint(parts) and not parts[-1].startswith("_"):
            yield from _docstrings(".".join(parts), ast.parse(path.read_bytes()))


def _docstrings(name: str, tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            text = ast.get_docstring(node)
            if text and not node.name.startswith("_"):
                yield f"{name}.{node.name}", text
            yield from _docstrings(f"{name}.{node.name}", node)


def _documented_in_c() -> Iterator[tuple[str, str]]:
    """Names and docstrings of the modules that are part of the interpreter."""
    for module in map(importlib.import_module, sorted(sys.builtin_module_names)):
        for name, thing in sorted(vars(module).items()):
            members = [(name, thing)]
            if inspect.isclass(thing):
                members += [(f"{name}.{part}", t) for part, t in sorted(vars(thing).items())]
            for path, member in members:
                text = getattr(member, "__doc__", None)
                if isinstance(text, str) and not path.startswith("_"):
                    yield f"{module.__name__}.{path}", text


def _normal(text: str) -> str:
    return " ".join(re.sub(r"[^a-z0-9]+", " ", text.lower()).split())


class Bench:
    """The texts of the bench sets, to know what must not be trained on.

    Args:
        folder: Holds a BEIR-shaped folder for each set.
    """

    def __init__(self, folder: Path) -> None:
        queries = [_normal(r["text"]) for p in folder.glob("*/queries*") for r in read_lines(p)]
        corpora = [_normal(r["text"]) for p in folder.glob("*/corpus*") for r in read_lines(p)]
        self._short = {*queries, *corpora}
        self._all = "\n".join([*queries, *corpora])

    def holds(self, question: str) -> bool:
        """Whether the question stands in a bench set, alone or inside a longer text."""
        text = _normal(question)
        return text in self._short or (len(text) >= 40 and text in self._all)


def split(found: Sequence[Pair]) -> tuple[list[str], list[Example]]:
    """Documents once each, and examples in two parts that share no question and no document.

    A question goes to dev by its hash; its documents are dev's then, and training examples lose
    them.
    """
    unique = {(pair.set, _normal(pair.query)): pair for pair in found}
    dev_queries = {query for _, query in unique if _share(query) < _DEV_SHARE}
    dev_documents = {
        text[:LONGEST]
        for (_, query), pair in unique.items()
        if query in dev_queries
        for text in pair.documents
    }
    lines: dict[str, int] = {}
    examples = []
    for (_, query), pair in unique.items():
        dev = query in dev_queries
        texts = [text[:LONGEST] for text in pair.documents]
        kept = [t for t in texts if t.strip() and (dev or t not in dev_documents)]
        if kept:
            examples.append(
                Example(
                    set=pair.set,
                    part="dev" if dev else "train",
                    query=pair.query[:LONGEST],
                    positives=tuple(
                        dict.fromkeys(lines.setdefault(text, len(lines)) for text in kept)
                    ),
                    rationale=pair.rationale,
                    whole=pair.whole,
                )
            )
    return list(lines), examples


def _share(text: str) -> float:
    """A number in [0, 1) that a text always gets."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def read_examples(folder: Path) -> tuple[list[str], list[Example]]:
    """What `main` wrote: the documents, and the examples."""
    documents = [row["text"] for row in read_lines(folder / "documents.jsonl")]
    raw = (folder / "examples.jsonl").read_bytes().splitlines()
    return documents, [msgspec.json.decode(line, type=Example) for line in raw]


def kept_positives(folder: Path, examples: Sequence[Example]) -> list[NDArray[np.int64]]:
    """Lines of documents.jsonl that an example is trained on, as teacher.py chose, by example."""
    kept = np.load(folder / POSITIVES)
    ends = np.cumsum([len(example.positives) for example in examples])
    parts = np.split(kept, ends[:-1])
    return [np.array(e.positives)[part] for e, part in zip(examples, parts, strict=True)]


def draw_distractors(answers: NDArray[np.int64], documents: int, count: int) -> NDArray[np.int64]:
    """Documents that answer nothing, drawn from all there are; the same ones always.

    Args:
        answers: Lines of documents.jsonl that are left out.
        documents: How many the stream has.
        count: How many are drawn.
    """
    others = np.setdiff1d(np.arange(documents), answers)
    return np.random.default_rng(0).choice(others, count, replace=False)


def groups(examples: Sequence[Example]) -> Iterator[tuple[str, list[int]]]:
    """Each set's part by its name, "set part", with the places of its examples."""
    for key in sorted({(e.set, e.part) for e in examples}):
        yield " ".join(key), [at for at, e in enumerate(examples) if (e.set, e.part) == key]


@click.command()
@click.option("--train", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--bench", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--seed", default=0, show_default=True)
def main(train: Path, bench: Path, out: Path, seed: int) -> None:
    """Write the training stream."""
    known = Bench(bench)
    found = list(pairs(train, seed))
    kept = [pair for pair in found if not known.holds(pair.query)]
    documents, examples = split(kept)
    out.mkdir(parents=True, exist_ok=True)
    write_lines(out / "documents.jsonl", ({"text": text} for text in documents))
    write_lines(out / "examples.jsonl", examples)
    click.echo(f"{len(found) - len(kept)} of {len(found)} questions occur in a bench set: dropped")
    click.echo(f"{len(documents)} documents")
    for (name, part), count in sorted(Counter((e.set, e.part) for e in examples).items()):
        click.echo(f"{name:24} {part:6} {count}")


if __name__ == "__main__":
    main()
