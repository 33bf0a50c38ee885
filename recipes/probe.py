"""The tiny build that says whether an engine runs on a device, of random weights.

    python -m recipes.probe OUT

It ships as runtime/t1_edge/data/probe, and is made again when the build format changes. One block,
in the shape of a Llama, with every file that a build can have.
"""

import hashlib
import json
from pathlib import Path
from typing import Final

import click
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from t1_edge.build import Decoder, Source
from t1_edge.contract import Contract
from t1_edge_export.bars import Bars, no_bars
from t1_edge_export.checkpoint import Origin
from t1_edge_export.decoder import tensors
from t1_edge_export.pipeline import export
from t1_edge_export.request import Request

_DECODER: Final = Decoder(
    family="llama",
    hidden=64,
    layers=1,
    heads=2,
    kv_heads=1,
    head_dim=32,
    intermediate=128,
    vocabulary=288,
    positions=64,
    rope_theta=10_000.0,
    norm_epsilon=1e-6,
    tied=True,
)
_CONTRACT: Final = Contract(
    query="?{text}",
    document=":{text}",
    adds=("<think>", "</think>", "<emb_token>"),
    stop=("<end>",),
    budget=4,
    max_query_tokens=32,
    max_document_tokens=32,
)
_DEVIATION: Final = 0.15


class RandomCheckpoint:
    """Weights that are noise. See `t1_edge_export.checkpoint.Checkpoint`."""

    decoder = _DECODER

    @property
    def tokenizer(self) -> str:
        """Bytes, one pair of them, since a GGUF must have one, and one special token."""
        vocabulary = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
        ids = {token: at for at, token in enumerate(vocabulary)}
        tokenizer = Tokenizer(models.BPE(ids, [("t", "h")]))
        cuts = [pre_tokenizers.Digits(individual_digits=True)]
        cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(["<end>"])
        return json.dumps(json.loads(tokenizer.to_str()))

    @property
    def origin(self) -> Origin:
        """Nobody's."""
        return Origin(id="random", licence="Apache-2.0", note="noise")

    def source(self, bars: Bars = no_bars) -> Source:
        """Nobody's."""
        return self.origin.hashed(hashlib.sha256(b"").hexdigest())

    @property
    def stored_bytes(self) -> int:
        """As float32."""
        return 4 * sum(spec.size for spec in tensors(_DECODER))

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of a tensor, the same at every call."""
        [shape] = [spec.shape for spec in tensors(_DECODER) if spec.name == name]
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
        noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
        values = noise * np.float32(_DEVIATION) + np.float32(len(shape) == 1)
        return np.asarray(values[start:stop])


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
def main(out: Path) -> None:
    """Write the build to OUT."""
    request = Request(
        name="probe",
        destination=out,
        contract=_CONTRACT,
        cuda=True,
        force=True,
        allow_drift=True,  # noise loses more to 4 bits than weights do
    )
    export(RandomCheckpoint(), request)


if __name__ == "__main__":
    main()
