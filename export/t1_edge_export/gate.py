"""The gate: how far the fresh files are from the float reference, and how far they may be.

The bounds and the measurements behind them are in docs/build-format.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from t1_edge.build import GGUF_MODEL, TOKENIZER, Decoder, Format, Profile
from t1_edge.engines.base import Float32Array
from t1_edge.errors import GateError
from t1_edge.vectors import cosines
from t1_edge.verification import Bounds, DocumentFigures, EngineFigures, FreeRunning, Verification
from t1_edge_export.golden_texts import DOCUMENTS, QUERIES
from t1_edge_export.tokenizer_parity import differing_texts
from t1_edge_export.trial import BUDGETS, Answers, Trial
from t1_edge_export.trial_process import ask_documents, ask_format

Verified = Format | Literal["documents"]
"""What the gate runs: a format's files, or the graph for documents."""

_WORST: Final = 3
"""Texts that a miss names."""

BOUNDS: Final[Mapping[Profile, Bounds]] = {
    "float": Bounds(
        cosine_mean=0.99999,
        cosine_min=0.9999,
        cross_min=0.9999,
        divergence=1e-4,
        slack=0.0005,
        documents_mean=0.99999,
        documents_min=0.9999,
    ),
    "native": Bounds(
        cosine_mean=0.97,
        cosine_min=0.94,
        cross_min=0.98,
        divergence=0.15,
        slack=0.02,
        documents_mean=0.98,
        documents_min=0.94,
    ),
    "portable": Bounds(
        cosine_mean=0.93,
        cosine_min=0.85,
        cross_min=0.98,
        divergence=0.5,
        slack=0.02,
        documents_mean=0.98,
        documents_min=0.94,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the gate found.

    Attributes:
        verification: Figures and bounds; `misses` compares them.
        worst_texts: Of what was run, the texts whose vectors are furthest from the reference's.
    """

    verification: Verification
    worst_texts: Mapping[Verified, Sequence[str]]


def measure(
    directory: Path,
    formats: Sequence[Format],
    decoder: Decoder,
    trial: Trial,
    truth: Answers,
    profile: Profile,
    *,
    documents: bool = False,
    scratch: Path,
    say: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Run the fresh files of each format.

    Args:
        directory: Where the files are.
        formats: Which engines to run, one after the other.
        decoder: The shape of the model.
        trial: What to ask them.
        truth: The float reference's answers.
        profile: Whose bounds apply.
        documents: Whether there is a graph for documents.
        scratch: A directory for what processes tell each other.
        say: Called with a line of talk before each engine's turn.

    Raises:
        EngineError: If an engine cannot run the files.
        GateError: If llama.cpp's tokenizer gives other ids than tokenizer.json.
    """
    texts = 0
    if "gguf" in formats:
        say("comparing llama.cpp's tokenizer with tokenizer.json")
        texts = _check_tokenizer(directory)
    bounds, exact = BOUNDS[profile], profile == "float"
    answers = {}
    for format in formats:
        say(f"verifying what was written for {format}")
        answers[format] = ask_format(
            directory, format, decoder, trial, exact=exact, scratch=scratch
        )
    worst: dict[Verified, Sequence[str]] = {
        format: _worst_texts(trial.texts, truth.vectors, found.vectors)
        for format, found in answers.items()
    }
    read = None
    if documents:
        say("verifying what was written for documents")
        vectors = ask_documents(directory, decoder, trial, scratch=scratch)
        read = _documents(truth, vectors, bounds)
        worst["documents"] = _worst_texts(DOCUMENTS, truth.vectors[-len(vectors) :], vectors)
    verification = Verification(
        rows=len(trial.rows),
        positions=len(truth.scores),
        tokenizer_texts=texts,
        bounds=bounds,
        engines={format: _figures(truth, found, bounds) for format, found in answers.items()},
        cross_engine_min=_cross([found.vectors for found in answers.values()]),
        documents=read,
    )
    return Measured(verification=verification, worst_texts=worst)


class Miss(NamedTuple):
    """A bound that a build misses: of a format, of "documents", or None between formats."""

    format: str | None
    sentence: str


def misses(verification: Verification) -> list[Miss]:
    """The bounds that a build misses; empty if it may be published."""
    bounds = verification.bounds
    found = []
    for format, figures in verification.engines.items():
        for what, value, bound in (
            ("mean cosine to the float reference", figures.cosine_mean, bounds.cosine_mean),
            ("worst cosine to the float reference", figures.cosine_min, bounds.cosine_min),
        ):
            if not value >= bound:
                found.append(Miss(format, f"{format}: {what} {value:.4f}, must be {bound}"))
        if not figures.divergence_mean <= bounds.divergence:
            what = f"mean divergence of the next token {figures.divergence_mean:.4f} nats"
            found.append(Miss(format, f"{format}: {what}, must be {bounds.divergence} or less"))
    cross = verification.cross_engine_min
    if cross is not None and not cross >= bounds.cross_min:
        what = f"worst cosine between the engines {cross:.4f}"
        found.append(Miss(None, f"{what}, must be {bounds.cross_min}"))
    read = verification.documents
    if read is not None:
        for what, value, bound in (
            ("mean cosine to the float reference", read.cosine_mean, bounds.documents_mean),
            ("worst cosine to the float reference", read.cosine_min, bounds.documents_min),
        ):
            if not value >= bound:
                sentence = f"the graph for documents: {what} {value:.4f}, must be {bound}"
                found.append(Miss("documents", sentence))
    return found


def _figures(truth: Answers, found: Answers, bounds: Bounds) -> EngineFigures:
    near = cosines(found.vectors, truth.vectors)
    divergences = divergence(truth.scores, found.scores)
    return EngineFigures(
        library=found.library,
        cosine_mean=_round(near.mean()),
        cosine_p1=_round(np.percentile(near, 1)),
        cosine_min=_round(near.min()),
        divergence_mean=_round(divergences.mean()),
        divergence_max=_round(divergences.max()),
        free=tuple(_free(truth, found, at) for at, budget in enumerate(BUDGETS) if budget),
        floor=_round(near.min() - bounds.slack),
    )


def _free(truth: Answers, found: Answers, at: int) -> FreeRunning:
    """Thoughts at a budget: greedy ones begin like those at a larger one."""
    budget = BUDGETS[at]
    pairs = [
        (true[:budget], own[:budget])
        for true, own in zip(truth.thoughts, found.thoughts, strict=True)
    ]
    near = cosines(found.ends[at], truth.ends[at])
    return FreeRunning(
        budget=budget,
        same=_round(np.mean([true == own for true, own in pairs])),
        agreed=_round(np.mean([_agreed(true, own) for true, own in pairs])),
        cosine_mean=_round(near.mean()),
        cosine_min=_round(near.min()),
    )


def _agreed(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens before the first that differs."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def divergence(truth: Float32Array, found: Float32Array) -> NDArray[np.float64]:
    """Kullback-Leibler divergence of each row's distribution from the true one, in nats.

    Args:
        truth: Logits, float32 [n, vocabulary].
        found: Likewise.

    Returns:
        float64 [n], 0 or more.
    """
    return np.array([_divergence(p, q) for p, q in zip(truth, found, strict=True)])


def _divergence(truth: Float32Array, found: Float32Array) -> float:
    p, q = (_log_probabilities(logits) for logits in (truth, found))
    return float(np.exp(p) @ (p - q))


def _log_probabilities(logits: Float32Array) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - float(logits.max())
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def _cross(vectors: Sequence[Float32Array]) -> float | None:
    if len(vectors) < 2:
        return None
    one, other = vectors
    return _round(cosines(one, other).min())


def _documents(truth: Answers, found: Float32Array, bounds: Bounds) -> DocumentFigures:
    near = cosines(found, truth.vectors[-len(found) :])
    return DocumentFigures(
        cosine_mean=_round(near.mean()),
        cosine_min=_round(near.min()),
        floor=_round(near.min() - bounds.slack),
    )


def _worst_texts(texts: Sequence[str], truth: Float32Array, found: Float32Array) -> list[str]:
    order = cosines(found, truth).argsort()
    return list(dict.fromkeys(texts[row] for row in order.tolist()))[:_WORST]


def _round(value: float | np.floating) -> float:
    return round(float(value), 6)


def _check_tokenizer(directory: Path) -> int:
    """How many texts were compared; raises if one differs."""
    texts = [*QUERIES, *DOCUMENTS]
    tokenizer = (directory / TOKENIZER).read_text(encoding="utf-8")
    differing = differing_texts(directory / GGUF_MODEL, tokenizer, texts)
    if differing:
        raise GateError(
            f"llama.cpp's tokenizer and tokenizer.json disagree on {len(differing)} of "
            f"{len(texts)} texts, the first is {differing[0]!r}"
        )
    return len(texts)
