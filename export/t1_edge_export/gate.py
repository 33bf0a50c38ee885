"""The gate: golden rows from the float reference, and what the fresh files make of them.

Teacher-forced: the same tokens go into the reference and into each engine, and the vectors at
`<emb_token>` are compared. The bounds and the measurements behind them are in docs/build-format.md.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from t1_edge.build import GGUF_MODEL, Decoder, EngineFigures, Format, Profile, Verification
from t1_edge.contract import Codec
from t1_edge.engines.base import Float32Array
from t1_edge.engines.select import open_format
from t1_edge.errors import GateError
from t1_edge.golden import Golden, run_rows
from t1_edge.vectors import cosines
from t1_edge_export.checkpoint import Checkpoint
from t1_edge_export.golden_texts import DOCUMENTS, QUERIES
from t1_edge_export.reference import Reference
from t1_edge_export.tokenizer_parity import differing_texts

_GOLDEN_BUDGET: Final = 8
"""Tokens of a golden thought: the reference has no fast kernels, and each costs it a pass."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a profile must reach, as cosines.

    Attributes:
        mean: Mean over the golden rows, engine against float reference.
        worst: Any golden row, engine against float reference.
        cross: Any golden row, one engine against the other.
        slack: How far below this export's worst cosine another machine's may fall: kernels for
            other processors round activations in another order.
    """

    mean: float
    worst: float
    cross: float
    slack: float


BOUNDS: Final[Mapping[Profile, Bounds]] = {
    "float": Bounds(mean=0.99999, worst=0.9999, cross=0.9999, slack=0.0005),
    "portable": Bounds(mean=0.93, worst=0.85, cross=0.98, slack=0.02),
}


def golden_rows(checkpoint: Checkpoint, codec: Codec) -> Golden:
    """Let the float reference think about the golden queries, and embed everything.

    Args:
        checkpoint: The float weights, with the contract's tokens in them.
        codec: The contract, bound to the checkpoint's tokenizer.
    """
    reference = Reference(checkpoint)
    queries = [codec.query(text).tokens for text in QUERIES]
    stop = codec.stop_ids | {codec.close_id, codec.emb_id}
    thoughts = reference.greedy(queries, budget=_GOLDEN_BUDGET, stop=stop)
    end = (codec.close_id, codec.emb_id)
    rows = [(*query, *thought, *end) for query, thought in zip(queries, thoughts, strict=True)]
    rows += [(*codec.document(text).tokens, codec.emb_id) for text in DOCUMENTS]
    hidden = reference.hidden_states(rows)
    return Golden(
        rows=rows,
        vectors=hidden / np.linalg.norm(hidden, axis=1, keepdims=True),
        texts=[*QUERIES, *DOCUMENTS],
        thoughts=[codec.thought_text(t) for t in thoughts] + [""] * len(DOCUMENTS),
        roles=["query"] * len(QUERIES) + ["document"] * len(DOCUMENTS),
    )


def measure(
    directory: Path,
    formats: Sequence[Format],
    decoder: Decoder,
    tokenizer: str,
    golden: Golden,
    profile: Profile,
) -> Verification:
    """Run the fresh files of each format on the golden rows.

    Args:
        directory: Where the files are.
        formats: Which engines to run, one after the other.
        decoder: The shape of the model.
        tokenizer: The text of tokenizer.json.
        golden: What to compare with.
        profile: Whose bounds apply.

    Returns:
        Figures and bounds; `misses` compares them.

    Raises:
        GateError: If llama.cpp's tokenizer gives other ids than tokenizer.json.
    """
    bounds = BOUNDS[profile]
    vectors: dict[Format, Float32Array] = {}
    engines: dict[str, EngineFigures] = {}
    for format in formats:
        with closing(open_format(directory, format, decoder, exact=profile == "float")) as engine:
            vectors[format] = run_rows(engine, golden.rows)
            library = engine.info.library
        found = cosines(vectors[format], golden.vectors)
        worst = float(found.min())
        engines[format] = EngineFigures(
            library=library,
            cosine_mean=round(float(found.mean()), 6),
            cosine_min=round(worst, 6),
            floor=round(worst - bounds.slack, 6),
        )
    return Verification(
        rows=len(golden.rows),
        tokenizer_texts=_check_tokenizer(directory, tokenizer) if "gguf" in formats else 0,
        bound_mean=bounds.mean,
        bound_min=bounds.worst,
        bound_cross=bounds.cross,
        engines=engines,
        cross_engine_min=_cross(vectors),
    )


def misses(verification: Verification) -> list[str]:
    """The bounds that a build misses, each as a sentence; empty if it may be published."""
    found = []
    for format, figures in verification.engines.items():
        if not figures.cosine_mean >= verification.bound_mean:
            found.append(f"{format}: mean cosine to the float reference {figures.cosine_mean:.4f}")
        if not figures.cosine_min >= verification.bound_min:
            found.append(f"{format}: worst cosine to the float reference {figures.cosine_min:.4f}")
    cross = verification.cross_engine_min
    if cross is not None and not cross >= verification.bound_cross:
        found.append(f"worst cosine between the engines {cross:.4f}")
    return found


def _cross(vectors: Mapping[Format, Float32Array]) -> float | None:
    if len(vectors) < 2:
        return None
    one, other = vectors.values()
    return round(float(cosines(one, other).min()), 6)


def _check_tokenizer(directory: Path, tokenizer: str) -> int:
    """How many texts were compared; raises if one differs."""
    texts = [*QUERIES, *DOCUMENTS]
    differing = differing_texts(directory / GGUF_MODEL, tokenizer, texts)
    if differing:
        raise GateError(
            f"llama.cpp's tokenizer and tokenizer.json disagree on {len(differing)} of "
            f"{len(texts)} texts, the first is {differing[0]!r}"
        )
    return len(texts)
