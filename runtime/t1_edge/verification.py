"""What the gate measured on a build, as its manifest keeps it."""

import msgspec


class Bounds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a profile must reach.

    Attributes:
        cosine_mean: Least mean over the golden rows, engine against float reference.
        cosine_min: Least of any golden row, engine against float reference.
        cross_min: Least of any golden row, one engine against the other.
        divergence: Largest mean Kullback-Leibler divergence, in nats.
        slack: How far below this export's worst cosine another machine's may fall: kernels for
            other processors round activations in another order.
        documents_mean: Least mean over golden documents, the graph for documents against the float
            reference.
        documents_min: Least of any of them.
    """

    cosine_mean: float
    cosine_min: float
    cross_min: float
    divergence: float
    slack: float
    documents_mean: float
    documents_min: float


class FreeRunning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine thinks by itself about the golden queries, against the float reference.

    Attributes:
        budget: Most tokens of a thought.
        same: Share of the thoughts that are the reference's, token for token.
        agreed: Mean number of tokens before the first that differs.
        cosine_mean: Mean cosine of the vectors behind each one's own thought.
        cosine_min: Worst of them.
    """

    budget: int
    same: float
    agreed: float
    cosine_mean: float
    cosine_min: float


class EngineFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the gate measured on one format.

    Attributes:
        library: Engine and version that ran.
        cosine_mean: Mean cosine at `<emb_token>` to the float reference, teacher-forced.
        cosine_p1: Their 1st percentile.
        cosine_min: The worst of them.
        divergence_mean: Mean Kullback-Leibler divergence of the next token's distribution from the
            float reference's, along its thoughts, in nats.
        divergence_max: The worst of them.
        free: Thoughts of its own, by budget.
        floor: Least cosine that the golden vectors must reach wherever the build is opened.
    """

    library: str
    cosine_mean: float
    cosine_p1: float
    cosine_min: float
    divergence_mean: float
    divergence_max: float
    free: tuple[FreeRunning, ...]
    floor: float


class DocumentFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the gate measured on the graph for documents.

    Attributes:
        cosine_mean: Mean cosine at `<emb_token>` to the float reference over golden documents.
        cosine_min: The worst of them.
        floor: Least cosine that the golden documents must reach wherever the build is opened.
    """

    cosine_mean: float
    cosine_min: float
    floor: float


class Verification(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The gate's figures and bounds.

    Attributes:
        rows: Golden rows compared.
        positions: Places in the reference's thoughts at which the next token was compared.
        tokenizer_texts: Texts whose ids llama.cpp's own tokenizer gave alike; 0 without a GGUF.
        bounds: What was accepted.
        engines: Figures by format.
        cross_engine_min: Worst cosine between the formats' vectors; absent with one format.
        drift_allowed: Whether the build was published although it missed a bound.
        documents: Figures of the graph for documents; absent without it.
    """

    rows: int
    positions: int
    tokenizer_texts: int
    bounds: Bounds
    engines: dict[str, EngineFigures]
    cross_engine_min: float | None = None
    drift_allowed: bool = False
    documents: DocumentFigures | None = None

    def floor(self, engine: str, graph: str) -> float:
        """Least cosine that golden vectors must reach, of one of an engine's graphs."""
        if graph == "documents" and self.documents is not None:
            return self.documents.floor
        return self.engines[engine].floor
