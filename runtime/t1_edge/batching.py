"""Which rows run together."""

from collections.abc import Iterator, Sequence

from t1_edge.engines.base import Engine


def batches(lengths: Sequence[int], engine: Engine, most: int | None = None) -> Iterator[list[int]]:
    """Indices of rows that run together: of like length, so that little is padded.

    Args:
        lengths: Tokens of each row.
        engine: What reads them; its `batch_tokens` and `batch_rows` bound a batch.
        most: Most rows of a batch; the engine's if None, or if that is less.
    """
    most = engine.batch_rows if most is None else min(most, engine.batch_rows)
    batch: list[int] = []
    for at in sorted(range(len(lengths)), key=lambda at: lengths[at]):
        crowded = (len(batch) + 1) * lengths[at] > engine.batch_tokens
        if batch and (crowded or len(batch) == most):
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch
