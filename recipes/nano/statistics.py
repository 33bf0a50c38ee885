"""What passes through nano's linear layers on training rows: an export weighs its rounding with it.

python -m recipes.nano.statistics --data DIR --adapter ADAPTER --out statistics.gguf
"""

import json
from pathlib import Path

import click
import numpy as np

from recipes.nano.model import CONFIG
from recipes.nano.stream import Stream
from recipes.nano.wording import TOKENS, WORDS
from t1_edge.contract import Codec
from t1_edge.tokenization import TextTokenizer
from t1_edge_export.adapter import with_adapter
from t1_edge_export.checkpoint import find_checkpoint, open_checkpoint
from t1_edge_export.presets import PRESETS
from t1_edge_export.quantize.statistics import collect
from t1_edge_export.vocabulary import with_tokens


def training_rows(stream: Stream, count: int, seed: int) -> list[tuple[int, ...]]:
    """Rows as a trained decoder meets them: queries, every second with a thought, and answers.

    Such a thought is drawn from the keywords of the answers.

    Args:
        stream: Where they come from; dev stays out.
        count: Queries, and as many answers.
        seed: Of the choice.
    """
    rng = np.random.default_rng(seed)
    train = [at for at, example in enumerate(stream.examples) if example.part == "train"]
    chosen = rng.choice(train, count, replace=False).tolist()
    end = (stream.codec.close_id, stream.codec.emb_id)
    thoughts = [
        stream.wording(at, rng, most=WORDS, budget=TOKENS).tokens if turn % 2 else ()
        for turn, at in enumerate(chosen)
    ]
    rows = [(*stream.queries[at], *own, *end) for at, own in zip(chosen, thoughts, strict=True)]
    return rows + [stream.documents[rng.choice(stream.positives(at))] for at in chosen]


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--adapter", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--count", default=128, show_default=True, help="Queries, and as many answers.")
def main(data: Path, adapter: Path, out: Path, count: int) -> None:
    """Collect the statistics of the merged weights."""
    contract = PRESETS["nano"]
    base = json.loads((adapter / CONFIG).read_text())["base_model_name_or_path"]
    checkpoint = with_tokens(open_checkpoint(find_checkpoint(base)), contract)
    codec = Codec(contract, TextTokenizer(checkpoint.tokenizer))
    stream = Stream(data, codec, query_tokens=64, document_tokens=128)
    rows = training_rows(stream, count, seed=0)
    found = collect(
        with_adapter(checkpoint, adapter), rows, f"{len(rows)} rows of nano's training stream"
    )
    found.save(out, checkpoint.decoder)
    click.echo(f"{found.tokens} tokens")


if __name__ == "__main__":
    main()
