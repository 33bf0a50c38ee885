"""The mean of two adapters of one lineage.

    python -m recipes.nano.average FIRST SECOND --share 0.3 --out DIR

A model soup (arXiv 2203.05482): two runs that went apart from one student may find more together
than either. It is the mean of A and of B, not of their product, so it asks for matrices that have
not drifted far.
"""

import shutil
from pathlib import Path

import click
from safetensors.torch import load_file, save_file

from recipes.nano.model import ADAPTER, CONFIG


def average(first: Path, second: Path, share: float, out: Path) -> None:
    """Write the mean of two adapters, float16.

    Args:
        first: Folder of an adapter.
        second: Likewise.
        share: Weight of the second, 0 to 1.
        out: Folder, made if it is missing.

    Raises:
        ValueError: If they adapt different matrices, or with different settings.
    """
    if (first / CONFIG).read_text() != (second / CONFIG).read_text():
        raise ValueError(f"{first} and {second} are adapters of different kinds: see {CONFIG}")
    ours, theirs = load_file(first / ADAPTER), load_file(second / ADAPTER)
    out.mkdir(parents=True, exist_ok=True)
    mixed = {
        name: ours[name].float().lerp(theirs[name].float(), share).half().contiguous()
        for name in ours
    }
    save_file(mixed, out / ADAPTER)
    shutil.copy(first / CONFIG, out / CONFIG)


@click.command()
@click.argument("first", type=click.Path(path_type=Path, exists=True))
@click.argument("second", type=click.Path(path_type=Path, exists=True))
@click.option("--share", type=click.FloatRange(0, 1), default=0.5, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(first: Path, second: Path, share: float, out: Path) -> None:
    """Write the mean of two adapters, SHARE of it from the second."""
    average(first, second, share, out)


if __name__ == "__main__":
    main()
