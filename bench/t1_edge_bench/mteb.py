"""A build as a model that mteb evaluates: its `EncoderProtocol`, as of mteb 2."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import msgspec

from t1_edge.build import Build, Manifest
from t1_edge.cache import find_build
from t1_edge.compat import PromptName, SentenceEncoder
from t1_edge.encoder import Encoder
from t1_edge.engines.base import Float32Array
from t1_edge.engines.select import Device, EngineChoice
from t1_edge.errors import BuildError, MissingExtraError

if TYPE_CHECKING:
    from mteb.models import ModelMeta

_FRAMEWORKS: Final = {"onnx": "ONNX", "gguf": "GGUF"}
"""mteb's names of the engines' formats."""


class MtebEncoder:
    """A build that `mteb.evaluate` takes as a model, and `mteb.ModelMeta` as a loader.

    Queries think; documents, and texts of tasks that know neither, are one pass. Texts over the
    contract's limits are cut, as every model of mteb does. Queries are not kept on disk.

    Args:
        model_name: Path of the build, or its name in the cache.
        revision: What the build's own must begin with; any if None.
        device: Where to run it.
        budget: Most tokens of a query's thought; the contract's if None.
        engine: Which of the build's formats to run.
        threads: CPU threads; those the process may use if None.

    Attributes:
        revision: A hash of the build's weights and contract.

    Raises:
        BuildError: If the revision is another; and what else `Encoder.load` raises.
        InputError: If the budget is negative.
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        *,
        device: Device | None = None,
        budget: int | None = None,
        engine: EngineChoice = "auto",
        threads: int | None = None,
    ) -> None:
        self._manifest = Build(find_build(model_name)).manifest
        self.revision = _revision(self._manifest)
        if not self.revision.startswith(revision or ""):
            raise BuildError(f"{model_name} is of revision {self.revision}, not {revision}")
        self._encoder = Encoder.load(
            model_name,
            engine=engine,
            device=device or "auto",
            threads=threads,
            budget=budget,
            cache=False,
        )
        self._budget = self._encoder.codec.contract.budget
        self._sentences = SentenceEncoder(self._encoder, truncate=True)

    @property
    def mteb_model_meta(self) -> "ModelMeta":
        """What mteb files results under: the build's name, its weights and contract, the budget.

        Raises:
            MissingExtraError: If mteb is not installed.
        """
        if find_spec("mteb") is None:
            raise MissingExtraError("mteb", "mteb")
        from mteb.models import ModelMeta

        limits = self._manifest.contract
        unknown: dict[str, Any] = dict.fromkeys(
            (
                "loader",
                "release_date",
                "languages",
                "n_parameters",
                "memory_usage_mb",
                "license",
                "open_weights",
                "public_training_code",
                "public_training_data",
                "training_datasets",
            )
        )
        reader = self._encoder.read_by()
        return ModelMeta(
            name=f"t1-edge/{self._manifest.name}",
            revision=self.revision,
            embed_dim=self._encoder.hidden,
            max_tokens=min(limits.max_query_tokens, limits.max_document_tokens),
            framework=sorted({_FRAMEWORKS[info.engine] for info in (self._encoder.info, reader)}),
            similarity_fn_name="cosine",
            use_instructions=True,
            experiment_kwargs={
                "budget": self._budget,
                "profile": self._manifest.profile,
                "engine": self._encoder.info.engine,
                "documents": reader.graph,
                "documents_engine": reader.engine,
            },
            **unknown,
        )

    def encode(
        self,
        inputs: Iterable[Mapping[str, Sequence[str]]],
        *,
        task_metadata: object,
        hf_split: str,
        hf_subset: str,
        prompt_type: str | None = None,
        **options: Any,
    ) -> Float32Array:
        """Embed the texts of a task.

        Args:
            inputs: mteb's batches; the texts of each are under "text".
            task_metadata: What the task is, which changes nothing: a contract has its templates.
            hf_split: Likewise.
            hf_subset: Likewise.
            prompt_type: "query", "document", or None.
            options: `batch_size` and what else `SentenceEncoder.encode` takes.

        Returns:
            float32 [n, d], L2-normalised.

        Raises:
            InputError: If an option cannot be honoured, or a text holds a lone surrogate.
            EngineError: If the engine fails, or a vector is not one.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        kind: PromptName = "query" if prompt_type == "query" else "document"
        return self._sentences.encode(texts, prompt_name=kind, **options)

    def similarity(self, embeddings1: Float32Array, embeddings2: Float32Array) -> Float32Array:
        """Cosines of all pairs, float32 [n, m]."""
        return self._sentences.similarity(embeddings1, embeddings2)

    def similarity_pairwise(
        self, embeddings1: Float32Array, embeddings2: Float32Array
    ) -> Float32Array:
        """Cosines of each row of one and the same row of the other, float32 [n]."""
        return self._sentences.similarity_pairwise(embeddings1, embeddings2)

    def close(self) -> None:
        """Free the engine."""
        self._encoder.close()

    def __enter__(self) -> "MtebEncoder":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _revision(manifest: Manifest) -> str:
    """Changes with whatever changes a vector: queries' templates are not in the fingerprint."""
    contract = msgspec.json.encode(manifest.contract)
    return hashlib.sha256(manifest.fingerprint.encode() + contract).hexdigest()[:16]
