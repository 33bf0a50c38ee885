"""The stream's dev questions as a data set, to choose between exports by: bench sets are no guide.

    python -m recipes.nano.devset --data DATA
    python -m recipes.nano.evaluate --bench DATA --set dev --build BUILD --out results.jsonl

The folder is one that every bench of t1-edge reads. Questions and documents are as long as in the
stream, of which training reads the beginnings.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

import click
import numpy as np
from numpy.typing import NDArray

from recipes.nano.data import (
    Example,
    draw_distractors,
    groups,
    kept_positives,
    read_examples,
    write_lines,
)

QUESTIONS: Final = 100
"""Most of a set."""

DISTRACTORS: Final = 2000


def draw(
    examples: Sequence[Example], kept: Sequence[NDArray[np.int64]], documents: int
) -> tuple[Mapping[str, NDArray[np.int64]], NDArray[np.int64]]:
    """Dev questions with their answers, and what to find these among; the same ones always.

    Args:
        examples: Of the stream.
        kept: What teacher.py chose of their answers, see `kept_positives`.
        documents: How many the stream has.

    Returns:
        Lines of documents.jsonl: those that answer a question, int64 [a], by its text; and all that
        are searched, int64 [n], up to `DISTRACTORS` of which answer none of the questions.

    Raises:
        ValueError: If the stream has no dev questions.
    """
    parts = [members for name, members in groups(examples) if name.endswith(" dev")]
    if not parts:
        raise ValueError("the stream has no dev questions")
    answers: dict[str, NDArray[np.int64]] = {}
    for at in chain.from_iterable(parts):  # a question may stand in two sets
        known = answers.get(examples[at].query, np.zeros(0, np.int64))
        answers[examples[at].query] = np.union1d(known, kept[at])
    chosen = sorted(chain.from_iterable(members[:QUESTIONS] for members in parts))
    questions = {examples[at].query: answers[examples[at].query] for at in chosen}
    own = np.unique(np.concatenate([*questions.values()]))
    more = draw_distractors(own, documents, min(DISTRACTORS, documents - len(own)))
    return questions, np.sort(np.concatenate([own, more]))


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
def main(data: Path) -> None:
    """Write DATA/dev."""
    texts, examples = read_examples(data)
    questions, documents = draw(examples, kept_positives(data, examples), len(texts))
    folder = data / "dev"
    folder.mkdir(exist_ok=True)
    write_lines(folder / "corpus.jsonl", ({"_id": str(at), "text": texts[at]} for at in documents))
    queries = [{"_id": str(at), "text": text} for at, text in enumerate(questions)]
    write_lines(folder / "queries.jsonl", queries)
    judged = [f"{at}\t{line}\t1\n" for at, lines in enumerate(questions.values()) for line in lines]
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged))
    click.echo(f"{len(questions)} questions, {len(documents)} documents")


if __name__ == "__main__":
    main()
