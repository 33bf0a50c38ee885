"""The stream's dev questions as a data set, to choose between exports by: bench sets are no guide.

    python -m recipes.nano.devset --data DATA
    python -m recipes.nano.evaluate --bench DATA --set dev --build BUILD --out results.jsonl

The folder is one that every bench of t1-edge reads. Questions and documents are whole, as they are
not in the dev figures of training.
"""

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from recipes.nano.data import Example, groups, read_examples, write_lines


def choose(
    examples: Sequence[Example], documents: int, *, most: int, distractors: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Dev questions, and what to find their answers among; the same ones always.

    Args:
        examples: Of the stream.
        documents: How many the stream has.
        most: Questions of a set.
        distractors: Documents of all sets that answer none of these questions; fewer where there
            are not so many.

    Returns:
        Places of questions among the examples, int64 [q], and lines of documents.jsonl, int64 [n].
    """
    rng = np.random.default_rng(0)
    parts = [members for name, members in groups(examples) if name.endswith(" dev")]
    drawn = [rng.choice(members, min(most, len(members)), replace=False) for members in parts]
    questions = np.sort(np.concatenate(drawn))
    answers = np.unique(np.concatenate([examples[at].positives for at in questions]))
    others = np.setdiff1d(np.arange(documents), answers)
    more = rng.choice(others, min(distractors, len(others)), replace=False)
    return questions, np.sort(np.concatenate([answers, more]))


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--most", default=100, show_default=True, help="Questions of a set.")
@click.option("--distractors", default=2000, show_default=True)
def main(data: Path, most: int, distractors: int) -> None:
    """Write DATA/dev."""
    texts, examples = read_examples(data)
    questions, documents = choose(examples, len(texts), most=most, distractors=distractors)
    folder = data / "dev"
    folder.mkdir(exist_ok=True)
    write_lines(folder / "corpus.jsonl", ({"_id": str(at), "text": texts[at]} for at in documents))
    write_lines(
        folder / "queries.jsonl", ({"_id": str(at), "text": examples[at].query} for at in questions)
    )
    judged = [f"{at}\t{line}\t1\n" for at in questions for line in examples[at].positives]
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged))
    click.echo(f"{len(questions)} questions, {len(documents)} documents")


if __name__ == "__main__":
    main()
