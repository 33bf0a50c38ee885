"""A build as mteb's model: by structure always, by mteb itself where it is installed."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t1_edge.build import MANIFEST, Build
from t1_edge.errors import BuildError, InputError, MissingExtraError
from t1_edge_bench.mteb import MtebEncoder

DOCUMENTS = {"d1": "the lake in the north", "d2": "the weather", "d3": "the water " * 300}
QUERIES = {"q1": "the lake", "q2": "a weather"}
TASK: dict[str, Any] = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}


@pytest.fixture(params=["onnx", "gguf"])
def model(request: pytest.FixtureRequest, tiny_build: Callable[..., Build]) -> Iterator[Any]:
    path = str(tiny_build("llama", "float").path)
    with MtebEncoder(path, engine=request.param, threads=1, budget=3) as model:
        yield model


def _batches(texts: dict[str, str]) -> list[dict[str, list[str]]]:
    """As a DataLoader of mteb gives them."""
    return [{"id": [id], "text": [text]} for id, text in texts.items()]


def test_queries_think_and_documents_do_not(model: MtebEncoder) -> None:
    queries = model.encode(_batches(QUERIES), prompt_type="query", batch_size=2, **TASK)
    documents = model.encode(_batches(DOCUMENTS), prompt_type="document", **TASK)
    neither = model.encode(_batches(DOCUMENTS), prompt_type=None, **TASK)
    assert (queries.shape, documents.shape) == ((2, 64), (3, 64))
    np.testing.assert_array_equal(documents, neither)
    assert model.similarity(queries, documents).shape == (2, 3)
    assert model.similarity_pairwise(queries, documents[:2]).shape == (2,)
    direct = model.encode(_batches(QUERIES), prompt_type="document", **TASK)
    assert not np.allclose(queries, direct, atol=1e-3)
    with pytest.raises(InputError, match="precision"):
        model.encode(_batches(QUERIES), precision="int8", **TASK)


def test_a_revision_is_of_the_weights_and_the_contract(
    tiny_build: Callable[..., Build], tmp_path: Path
) -> None:
    path = tiny_build("llama", "float").path
    with MtebEncoder(str(path)) as whole:
        MtebEncoder(str(path), whole.revision[:8]).close()
        with pytest.raises(BuildError, match=f"of revision {whole.revision}, not nope"):
            MtebEncoder(str(path), "nope")
        shutil.copytree(path, tmp_path / "build")
        manifest = json.loads((tmp_path / "build" / MANIFEST).read_bytes())
        manifest["contract"]["query"] = "Ask: {text}"  # which no document meets
        (tmp_path / "build" / MANIFEST).write_text(json.dumps(manifest))
        with MtebEncoder(str(tmp_path / "build")) as other:
            assert other.revision != whole.revision
    with pytest.raises(InputError, match="budget"):
        MtebEncoder(str(path), budget=-1)


def test_without_mteb_the_extra_is_named(
    model: MtebEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t1_edge_bench.mteb.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"t1-edge\[mteb\]"):
        _ = model.mteb_model_meta


def _task() -> Any:
    """A retrieval task of mteb's own kind, over a handful of texts."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class Lakes(AbsTaskRetrieval):  # type: ignore[misc]
        metadata = TaskMetadata(
            name="Lakes",
            description="lakes",
            dataset={"path": "no/where", "revision": "1"},
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            **dict.fromkeys(
                (
                    "reference",
                    "date",
                    "domains",
                    "task_subtypes",
                    "license",
                    "annotations_creators",
                    "dialect",
                    "sample_creation",
                    "bibtex_citation",
                )
            ),
        )

        def load_data(self, *args: Any, **options: Any) -> None:
            corpus = [{"id": at, "title": "", "text": text} for at, text in DOCUMENTS.items()]
            queries = [{"id": at, "text": text} for at, text in QUERIES.items()]
            split = {
                "corpus": Dataset.from_list(corpus),
                "queries": Dataset.from_list(queries),
                "relevant_docs": {"q1": {"d1": 1}, "q2": {"d2": 1}},
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return Lakes()


@pytest.mark.filterwarnings("ignore")
def test_mteb_evaluates_it(model: MtebEncoder) -> None:
    mteb = pytest.importorskip("mteb")
    from mteb.models import EncoderProtocol

    assert isinstance(model, EncoderProtocol)
    results = mteb.evaluate(model, [_task()], cache=None, co2_tracker=False)
    found = model.encode(_batches(QUERIES), prompt_type="query", **TASK)
    documents = model.encode(_batches(DOCUMENTS), prompt_type="document", **TASK)
    scores = model.similarity(found, documents)
    ranks = [1 + int((row > row[at]).sum()) for at, row in enumerate(scores)]
    expected = np.mean([1 / np.log2(1 + rank) for rank in ranks])
    assert results.task_results[0].get_score() == pytest.approx(expected, abs=1e-3)
    assert results.model_name == "t1-edge/llama-float-True"
    assert model.mteb_model_meta.experiment_kwargs["budget"] == 3
